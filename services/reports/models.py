"""The tables of the analytics database. They are not among those of the primary, and have migrations of their own."""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, MetaData, Text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from services.database import metadata as primary_metadata
from services.fields import TIMESTAMPTZ

metadata = MetaData(naming_convention=primary_metadata.naming_convention)

WHOLE = 0
"""In place of a seller or product: the row is about all of them. No seller and no product has this id."""


class AnalyticsTable(SQLModel, registry=registry(metadata=metadata)):
    """Base of the tables of the analytics database."""


class ReportDay(AnalyticsTable, table=True):
    """What happened to orders on one day, UTC: events of one type, their pieces and amounts in credits.

    There is a row for each product of each seller, one for each seller and one for the whole shop. The others could not
    be added up from the first: an order of two products is one order of its seller.
    """

    __tablename__ = "report_days"
    __table_args__ = (
        CheckConstraint("seller_id >= 0 AND product_id >= 0", name="ids"),
        CheckConstraint("orders > 0", name="orders"),
        CheckConstraint("pieces >= 0", name="pieces"),
        CheckConstraint("amount >= 0", name="amount"),
        Index("ix_report_days_day", "day"),
    )

    seller_id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    day: date = Field(primary_key=True)
    product_id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    type: str = Field(max_length=100, primary_key=True)
    orders: int = Field(sa_type=BigInteger)
    pieces: int = Field(sa_type=BigInteger)
    amount: Decimal = Field(max_digits=18, decimal_places=2)


class ReportWait(AnalyticsTable, table=True):
    """How long the orders that were confirmed on one day, UTC, had waited for it since their credits were held."""

    __tablename__ = "report_waits"
    __table_args__ = (
        CheckConstraint("seller_id >= 0", name="ids"),
        CheckConstraint("orders > 0", name="orders"),
        CheckConstraint("milliseconds >= 0 AND slowest >= 0", name="milliseconds"),
        CheckConstraint("least(within_1s, within_10s, within_1m, within_10m, within_1h) >= 0", name="within"),
        CheckConstraint("greatest(within_1s, within_10s, within_1m, within_10m, within_1h) <= orders", name="most"),
        Index("ix_report_waits_day", "day"),
    )

    seller_id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    day: date = Field(primary_key=True)
    orders: int = Field(sa_type=BigInteger)
    milliseconds: int = Field(sa_type=BigInteger)
    """The sum over the orders."""
    slowest: int = Field(sa_type=BigInteger)
    """In milliseconds."""
    within_1s: int = Field(sa_type=BigInteger)
    within_10s: int = Field(sa_type=BigInteger)
    within_1m: int = Field(sa_type=BigInteger)
    within_10m: int = Field(sa_type=BigInteger)
    within_1h: int = Field(sa_type=BigInteger)


class LogPlace(AnalyticsTable, table=True):
    """How far a consumer of the primary's event log has come, stored with its effects (`services/outbox/sink.py`).

    The snapshots are only kept here, and mean nothing to this database: they are the primary's.
    """

    __tablename__ = "log_places"
    __table_args__ = (
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("(reading IS NULL) = (until IS NULL)", name="reading"),
    )

    name: str = Field(max_length=100, primary_key=True)
    series: UUID
    number: int = Field(sa_type=BigInteger)
    read_id: UUID | None = None
    seen: str = Field(sa_type=Text)
    reading: str | None = Field(default=None, sa_type=Text)
    position: int = Field(sa_type=BigInteger)
    until: int | None = Field(default=None, sa_type=BigInteger)
    newest: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When the newest event was made that has been counted."""
