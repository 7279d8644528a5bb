"""What sellers and operators see of reports, and what passes from one database to the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import Field

from services.fields import Money, Schema


class By(StrEnum):
    """What a report of sales is grouped by."""

    day = "day"
    seller = "seller"
    product = "product"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the events have been counted: when the newest of them was made, and whether reports are rebuilt."""

    counted_until: datetime | None
    rebuilding: bool


@dataclass(frozen=True, slots=True)
class Period:
    """Days, UTC, the first and the last included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True)
class Summed:
    """What some events come to: rows of `report_days` and `report_waits`, and when the newest event was made."""

    days: Sequence[tuple[Any, ...]]
    waits: Sequence[tuple[Any, ...]]
    newest: datetime | None


class SalesRow(Schema):
    """What was sold and refunded of a day, a seller, a product or a combination: those it is not grouped by are null.

    A sale counts on the day on which its order was confirmed, a refund on the day of the refund.
    """

    day: date | None = None
    seller_id: int | None = None
    product_id: int | None = None
    orders: int = Field(description="The number of confirmed orders.")
    pieces: int = Field(description="The number of pieces in them.")
    revenue: Money = Field(description="What was paid for them, in credits.")
    refunds: int = Field(description="The number of refunds.")
    refunded_pieces: int
    refunded: Money = Field(description="What was paid back, in credits.")
    net: Money = Field(description="`revenue` less `refunded`.")


class WaitRow(Schema):
    """How long the orders that were confirmed on a day had waited, from when their credits were held."""

    day: date
    orders: int
    average_seconds: float
    slowest_seconds: float
    within_1s: int = Field(description="The number of orders that were confirmed within a second.")
    within_10s: int
    within_1m: int
    within_10m: int
    within_1h: int


RowT = TypeVar("RowT", bound=Schema)


class Report(Schema, Generic[RowT]):
    """Rows about a period, and how complete they are.

    While reports are rebuilt (`rebuilding`), days that have not been counted again yet are missing or too low.
    """

    first: date
    last: date
    counted_until: datetime | None = Field(description="When the newest event that has been counted was made.")
    rebuilding: bool
    data: list[RowT]
