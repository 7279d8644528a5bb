"""The row of a scheduled job: when it is due, who runs it, and how its last run ended."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Text, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ


class JobRow(SQLModel, table=True):
    """One schedule. All times are by the database's clock.

    It is due when `due_at` has passed, or when an operator has requested a run. The worker that runs it holds a lease,
    renews it during the run, and advances `due_at` only when the run has ended: the job of a lost worker is still due
    when the lease has expired.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease"),
        CheckConstraint("(paused_at IS NULL) = (paused_by IS NULL)", name="paused"),
        CheckConstraint("(requested_at IS NULL) = (requested_by IS NULL)", name="requested"),
        CheckConstraint("0 <= failed_in_a_row AND failed_in_a_row <= failures AND failures <= runs", name="counted"),
    )

    name: str = Field(max_length=100, primary_key=True)
    schedule: str = Field(sa_type=Text)
    """A description for people; the workers follow the schedule in their code."""
    due_at: datetime = Field(sa_type=TIMESTAMPTZ)

    started_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When the latest run began; it may still be running. The next four columns are about the latest run that ended."""
    finished_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    ok: bool | None = None
    seconds: float | None = None
    error: str | None = Field(default=None, sa_type=Text)
    runs: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    failures: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    failed_in_a_row: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})

    lease_owner: UUID | None = None
    """The id of a worker."""
    lease_until: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)

    paused_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    paused_by: str | None = Field(default=None, max_length=200)
    paused_reason: str | None = Field(default=None, max_length=500)
    requested_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """Set while a requested run has not begun. The run takes place even if the job is paused."""
    requested_by: str | None = Field(default=None, max_length=200)
