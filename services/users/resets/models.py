"""Mails that are to be sent, and the one-time tokens in them."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, String, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, allowed, now, text_enum
from services.users.models import Email


class MailKind(StrEnum):
    """What a mail is about."""

    password_reset = "password_reset"  # noqa: S105  (a kind of mail)
    verification = "verification"
    """A token that confirms the address or, if a user has it already, a hint that says so."""
    email_changed = "email_changed"
    """Tells a former address that it is not the user's any more."""


class Mail(SQLModel, table=True):
    """A mail that is to be sent. It has no text: the token in it is made when it is sent, and never stored.

    It goes to the address that the user has when it is sent or, without a user, to `email`. `due_at` is when it is
    tried next.
    """

    __tablename__ = "mails"
    __table_args__ = (
        Index("ix_mails_due_at_id", "due_at", "id"),
        Index("ix_mails_user_id", "user_id"),
        CheckConstraint(allowed("kind", MailKind), name="kind"),
        Index("ix_mails_unverified_id", "unverified_id"),
        CheckConstraint("attempts >= 0", name="counted"),
        CheckConstraint("num_nonnulls(user_id, email) = 1", name="addressed"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    kind: MailKind = Field(sa_type=text_enum(MailKind))
    user_id: int | None = Field(default=None, foreign_key="users.id", sa_type=BigInteger)
    email: Email | None = Field(default=None, sa_type=String(254))
    unverified_id: int | None = Field(
        default=None, sa_column_args=(ForeignKey("unverified_emails.id", ondelete="CASCADE"),), sa_type=BigInteger
    )
    """What a mail of the kind `verification` is about."""
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    due_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    last_error: str | None = Field(default=None, sa_type=String(500))


class OneTimeToken(SQLModel, table=True):
    """The SHA-256 of a token that was mailed. It is deleted when it is used."""

    __tablename__ = "one_time_tokens"
    __table_args__ = (
        Index("ix_one_time_tokens_user_id", "user_id"),
        Index("ix_one_time_tokens_unverified_id", "unverified_id"),
        Index("ix_one_time_tokens_expires_at", "expires_at"),
        CheckConstraint(allowed("purpose", MailKind), name="purpose"),
        CheckConstraint("length(hash) = 32", name="sha256"),
        CheckConstraint("num_nonnulls(user_id, unverified_id) = 1", name="about"),
    )

    hash: bytes = Field(primary_key=True, sa_type=LargeBinary)
    purpose: MailKind = Field(sa_type=text_enum(MailKind))
    user_id: int | None = Field(default=None, foreign_key="users.id", sa_type=BigInteger)
    unverified_id: int | None = Field(
        default=None, sa_column_args=(ForeignKey("unverified_emails.id", ondelete="CASCADE"),), sa_type=BigInteger
    )
    email: Email = Field(sa_type=String(254))
    """The address that it was sent to. The token is invalid once the user has another one."""
    expires_at: datetime = Field(sa_type=TIMESTAMPTZ)
