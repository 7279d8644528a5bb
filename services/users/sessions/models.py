"""Sessions and refresh tokens."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, Text, allowed, new_id, now, text_enum

LONGEST_USER_AGENT = 200
"""The characters that are kept of a client's `User-Agent`."""


class Ended(StrEnum):
    """Why a session ended before its time."""

    signed_out = "signed_out"
    reused = "reused"
    """A refresh token was used twice: one of the two who used it had stolen it."""
    password_changed = "password_changed"  # noqa: S105  (a reason)
    factor_changed = "factor_changed"
    """The user set up or removed a second factor, or it was reset."""
    removed = "removed"
    """The user was deleted or deactivated."""
    crowded_out = "crowded_out"
    """The user had too many sessions; this was the least recently used one."""


class UserSession(SQLModel, table=True):
    """A person who is signed in. An access token is valid only while its session is.

    `expires_at` is in the past once the session has ended: retention counts from it.
    """

    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_user_id_address", "user_id", "address"),
        Index("ix_sessions_expires_at_id", "expires_at", "id"),
        CheckConstraint(f"end_reason IS NULL OR {allowed('end_reason', Ended)}", name="end_reason"),
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ended"),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    user_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    last_used_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    expires_at: datetime = Field(sa_type=TIMESTAMPTZ)
    address: Text | None = Field(default=None, sa_type=String(45))
    user_agent: Text | None = Field(default=None, sa_type=String(LONGEST_USER_AGENT))
    ended_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    end_reason: Ended | None = Field(default=None, sa_type=text_enum(Ended))


class RefreshToken(SQLModel, table=True):
    """A refresh token's SHA-256. A used one stays until its session is deleted, so that a second use is noticed."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        # A session has one token that can be used.
        Index("uq_refresh_tokens_usable", "session_id", unique=True, postgresql_where=text("used_at IS NULL")),
        Index("ix_refresh_tokens_session_id", "session_id"),
        CheckConstraint("length(hash) = 32", name="sha256"),
    )

    hash: bytes = Field(primary_key=True, sa_type=LargeBinary)
    session_id: UUID = Field(sa_column_args=(ForeignKey("sessions.id", ondelete="CASCADE"),))
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    follows: bytes | None = Field(default=None, sa_type=LargeBinary)
    """The hash of the token that it was given for; None for the first one of a session."""
    used_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)


@dataclass(frozen=True, slots=True)
class Device:
    """Where a request comes from: what a user sees of their sessions. The client chooses the user agent."""

    address: str | None
    user_agent: str | None
