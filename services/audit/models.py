"""The results of finished audits."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ


class LedgerAudit(DeclarativeTable):
    """A finished audit, stored so that every process can show it. `seconds` is how long it took."""

    __tablename__ = "ledger_audits"
    __table_args__ = (
        CheckConstraint("seconds >= 0 AND rows_checked >= 0 AND differences >= 0", name="counted"),
        Index("ix_ledger_audits_started_at", "started_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    seconds: Mapped[float]
    rows_checked: Mapped[int] = mapped_column(BigInteger)
    differences: Mapped[int] = mapped_column(BigInteger)
    # The first few of each kind, as the command prints them with --json.
    sample: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
