"""The rows that canaries write."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ


class CanaryRow(DeclarativeTable):
    """One API process, and how often its canary has written. No other process reads its row."""

    __tablename__ = "canaries"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(BigInteger)
    written_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
