"""Idempotency keys and the replies stored under them."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, LargeBinary, SmallInteger, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ


class IdempotencyKey(SQLModel, table=True):
    """The final outcome of a request, stored in the same transaction as its effect.

    The scope is the caller, the method, the path and the key. `fingerprint` is the SHA-256 of the body. A path of more
    than 200 characters is stored with the SHA-256 of all of it at its end.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at", postgresql_using="brin"),)

    caller_id: int = Field(primary_key=True, foreign_key="users.id", sa_type=BigInteger)
    method: str = Field(max_length=8, primary_key=True)
    path: str = Field(max_length=200, primary_key=True)
    key: str = Field(max_length=255, primary_key=True)
    fingerprint: bytes = Field(sa_type=LargeBinary)
    role: str | None = Field(default=None, max_length=32)
    """The caller's role for which the reply was made; None in rows of the release before."""
    scopes: str | None = Field(default=None, sa_type=Text)
    """The scopes of the API key for which the reply was made, with spaces between them; None for a person."""
    status: int = Field(sa_type=SmallInteger)
    headers: dict[str, str] = Field(sa_type=JSONB)
    body: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
