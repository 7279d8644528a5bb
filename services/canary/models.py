"""The rows that canaries write."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ


class CanaryRow(SQLModel, table=True):
    """One API process, and how often its canary has written. No other process reads its row."""

    __tablename__ = "canaries"

    id: UUID = Field(primary_key=True)
    host: str = Field(max_length=255)
    pid: int
    number: int = Field(sa_type=BigInteger)
    written_at: datetime = Field(sa_type=TIMESTAMPTZ)
