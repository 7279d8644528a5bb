"""Rows that a sweep could not end."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ


class SweepFailureBase(SQLModel):
    """A row that a sweep could not end, and its last error. Sweeps leave it out until `next_at`."""

    sweep: str = Field(max_length=32, primary_key=True)
    subject: str = Field(sa_type=Text, primary_key=True)
    attempts: int
    error: str = Field(sa_type=Text)
    first_at: datetime = Field(sa_type=TIMESTAMPTZ)
    last_at: datetime = Field(sa_type=TIMESTAMPTZ)
    next_at: datetime = Field(sa_type=TIMESTAMPTZ)


class SweepFailure(SweepFailureBase, table=True):
    """One row that the database refuses to end; deleted once the row has ended.

    `subject` names the row: the id of an order, a hold or a worker, or the parts of an idempotency key.
    """

    __tablename__ = "sweep_failures"
    __table_args__ = (CheckConstraint("attempts > 0", name="attempts"),)
