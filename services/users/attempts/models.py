"""Counts of failed attempts."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, now


class FailedAttempts(SQLModel, table=True):
    """The failed attempts for one account or from one IP address. The key is a SHA-256, which does not show which."""

    __tablename__ = "failed_attempts"
    __table_args__ = (
        Index("ix_failed_attempts_updated_at", "updated_at"),
        CheckConstraint("length(subject) = 32", name="sha256"),
        CheckConstraint("failures >= 0", name="counted"),
    )

    subject: bytes = Field(primary_key=True, sa_type=LargeBinary)
    failures: int
    locked_until: datetime = Field(default_factory=now, sa_type=TIMESTAMPTZ)
    updated_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    failed_before: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    """What `updated_at` was before the latest attempt, and is again if that is given back."""
