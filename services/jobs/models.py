"""The row of a scheduled job: when it is due, who runs it, and how its last run ended."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ


class JobRow(DeclarativeTable):
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

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    schedule: Mapped[str] = mapped_column(Text)
    """A description for people; the workers follow the schedule in their code."""
    due_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)

    started_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    """When the latest run began; it may still be running. The next four columns are about the latest run that ended."""
    finished_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    ok: Mapped[bool | None]
    seconds: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    runs: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failures: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failed_in_a_row: Mapped[int] = mapped_column(Integer, server_default=text("0"))

    lease_owner: Mapped[UUID | None]
    """The id of a worker."""
    lease_until: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)

    paused_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    paused_by: Mapped[str | None] = mapped_column(String(200))
    paused_reason: Mapped[str | None] = mapped_column(String(500))
    requested_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    """Set while a requested run has not begun. The run takes place even if the job is paused."""
    requested_by: Mapped[str | None] = mapped_column(String(200))
