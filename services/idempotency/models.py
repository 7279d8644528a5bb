"""Idempotency keys and the replies stored under them."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, SmallInteger, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable
from services.fields import TIMESTAMPTZ


class IdempotencyKey(DeclarativeTable):
    """The final outcome of a request, stored in the same transaction as its effect.

    The scope is the caller, the method, the path and the key. `fingerprint` is the SHA-256 of the body.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at", postgresql_using="brin"),)

    caller_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"), primary_key=True)
    method: Mapped[str] = mapped_column(String(8), primary_key=True)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    status: Mapped[int] = mapped_column(SmallInteger)
    headers: Mapped[dict[str, str]] = mapped_column(JSONB)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
