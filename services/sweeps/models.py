"""Rows that a sweep could not end."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ


class SweepFailure(DeclarativeTable):
    """One row that the database refuses to end, with its last error; deleted once the row has ended.

    `subject` names the row: the id of an order, a hold or a worker, or the parts of an idempotency key.
    """

    __tablename__ = "sweep_failures"
    __table_args__ = (CheckConstraint("attempts > 0", name="attempts"),)

    sweep: Mapped[str] = mapped_column(String(32), primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    attempts: Mapped[int] = mapped_column(Integer)
    error: Mapped[str] = mapped_column(Text)
    first_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    last_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    next_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    """Sweeps leave the row out until this time."""
