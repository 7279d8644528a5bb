"""The audit log, and the head of its chain."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, LargeBinary, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from services.acting import LONGEST_ACTOR, LONGEST_ADDRESS
from services.fields import TIMESTAMPTZ


class ActBase(SQLModel):
    """What someone did, or how often they were refused."""

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    at: datetime = Field(
        default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("clock_timestamp()")}
    )
    actor: str | None = Field(default=None, max_length=LONGEST_ACTOR)
    """None if the caller is unknown."""
    user_id: int | None = Field(default=None, sa_type=BigInteger)
    """The user behind the actor. No foreign key: its check would lock the user's row."""
    action: str = Field(max_length=64)
    object: str = Field(max_length=200)
    reason: str = Field(default="", max_length=500, sa_column_kwargs={"server_default": ""})
    details: dict[str, Any] = Field(
        default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": text("'{}'")}
    )
    number: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})
    """How often it happened; more than 1 only for refusals, of which one row counts many."""
    request_id: str | None = Field(default=None, max_length=128)
    address: str | None = Field(default=None, max_length=LONGEST_ADDRESS)
    """The client's IP address; for commands, the system user and the host."""
    position: int | None = Field(default=None, sa_type=BigInteger)
    """The place in the chain, counted without gaps; None until it is sealed, a few seconds after the commit."""


class AuditLogRow(ActBase, table=True):
    """An entry of the audit log. Triggers allow one change of a row: that it is sealed, once.

    `hash` is the SHA-256 of the hash before it in the chain and of this row's content: see `queries.py` beside this.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        *(
            Index(f"ix_audit_log_{column}_id", column, "id")
            for column in ("action", "actor", "at", "object", "user_id")
        ),
        Index("ix_audit_log_unsealed", "id", postgresql_where=text("position IS NULL")),
        Index("uq_audit_log_position", "position", unique=True, postgresql_where=text("position IS NOT NULL")),
        CheckConstraint("number > 0", name="number"),
        CheckConstraint("length(action) > 0", name="action"),
        CheckConstraint("(position IS NULL) = (hash IS NULL)", name="sealed"),
    )

    hash: bytes | None = Field(default=None, sa_type=LargeBinary)


class AuditLogHead(SQLModel, table=True):
    """The last place in the chain, and its hash. Who seals locks the row, so rows are sealed one process at a time."""

    __tablename__ = "audit_log_head"
    __table_args__ = (CheckConstraint("id = 1", name="single"), CheckConstraint("length(hash) = 32", name="sha256"))

    id: int = Field(primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"autoincrement": False})
    position: int = Field(sa_type=BigInteger)
    hash: bytes = Field(sa_type=LargeBinary)
    sealed_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
