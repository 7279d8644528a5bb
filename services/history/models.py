"""The rows of which charts are made."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ

SLOT = 10
"""Seconds: each worker writes one row in this time."""


class HistoryRow(SQLModel, table=True):
    """What one worker did in one slot of ten seconds, since its row before.

    What the whole service has waiting is in the row of the worker that looked first in this slot, and null in others.
    """

    __tablename__ = "history"
    __table_args__ = (
        CheckConstraint("(waiting IS NULL) = (oldest_due_seconds IS NULL)", name="looked"),
        CheckConstraint("(waiting IS NULL) = (dead_letters IS NULL)", name="looked_at_dead_letters"),
    )

    at: datetime = Field(primary_key=True, sa_type=TIMESTAMPTZ)
    """When the slot begins."""
    worker_id: UUID = Field(primary_key=True)
    processed: int = Field(sa_type=BigInteger)
    retried: int = Field(sa_type=BigInteger)
    buried: int = Field(sa_type=BigInteger)
    batches: int = Field(sa_type=BigInteger)
    rolled_back: int = Field(sa_type=BigInteger)
    rung: int = Field(sa_type=BigInteger)
    """How often the doorbell led to a look at the outbox."""
    polled: int = Field(sa_type=BigInteger)
    """How often a timed look found events for which the doorbell had not rung."""
    queued: int = Field(sa_type=BigInteger)
    """The number of events whose time in the queue is in `queue_seconds`."""
    queue_seconds: float
    """How long they took from when they were recorded until the commit of their processing, all together."""
    waiting: int | None = Field(default=None, sa_type=BigInteger)
    dead_letters: int | None = Field(default=None, sa_type=BigInteger)
    """Both counted up to 10,000."""
    oldest_due_seconds: float | None = None
    position: int | None = Field(default=None, sa_type=BigInteger)
    """The latest position in the outbox that was taken: the difference of two is what was recorded in between."""
