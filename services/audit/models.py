"""The results of finished audits."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ


class LedgerAuditBase(SQLModel):
    """When an audit started, how long it took in seconds, and how many differences it found in how many rows."""

    started_at: datetime = Field(sa_type=TIMESTAMPTZ)
    seconds: float
    rows_checked: int = Field(sa_type=BigInteger)
    differences: int = Field(sa_type=BigInteger)


class LedgerAudit(LedgerAuditBase, table=True):
    """A finished audit, stored so that every process can show it."""

    __tablename__ = "ledger_audits"
    __table_args__ = (
        CheckConstraint("seconds >= 0 AND rows_checked >= 0 AND differences >= 0", name="counted"),
        Index("ix_ledger_audits_started_at", "started_at"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    # The first few of each kind, as the command prints them with --json.
    sample: list[dict[str, Any]] = Field(sa_type=JSONB)
