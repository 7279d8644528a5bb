"""The tables of the analytics database. They are not among those of the primary, and have migrations of their own."""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Date, Index, MetaData, Numeric, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.database import metadata as primary_metadata
from services.fields import TIMESTAMPTZ

metadata = MetaData(naming_convention=primary_metadata.naming_convention)

WHOLE = 0
"""In place of a seller or product: the row is about all of them. No seller and no product has this id."""


class AnalyticsTable(DeclarativeBase):
    """Base of the tables of the analytics database."""

    metadata = metadata


class ReportDay(AnalyticsTable):
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

    seller_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(100), primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    pieces: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[Decimal] = mapped_column(Numeric(18, 2))


class ReportWait(AnalyticsTable):
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

    seller_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    milliseconds: Mapped[int] = mapped_column(BigInteger)
    """The sum over the orders."""
    slowest: Mapped[int] = mapped_column(BigInteger)
    """In milliseconds."""
    within_1s: Mapped[int] = mapped_column(BigInteger)
    within_10s: Mapped[int] = mapped_column(BigInteger)
    within_1m: Mapped[int] = mapped_column(BigInteger)
    within_10m: Mapped[int] = mapped_column(BigInteger)
    within_1h: Mapped[int] = mapped_column(BigInteger)


class LogPlace(AnalyticsTable):
    """How far a consumer of the primary's event log has come, stored with its effects (`services/outbox/sink.py`).

    The snapshots are only kept here, and mean nothing to this database: they are the primary's.
    """

    __tablename__ = "log_places"
    __table_args__ = (
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint("(reading IS NULL) = (until IS NULL)", name="reading"),
    )

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    series: Mapped[UUID]
    number: Mapped[int] = mapped_column(BigInteger)
    read_id: Mapped[UUID | None]
    seen: Mapped[str] = mapped_column(Text)
    reading: Mapped[str | None] = mapped_column(Text)
    position: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int | None] = mapped_column(BigInteger)
    newest: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    """When the newest event was made that has been counted."""
