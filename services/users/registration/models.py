"""Addresses that wait to be confirmed."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, String, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, Name, now
from services.users.models import Email


class UnverifiedEmail(SQLModel, table=True):
    """An e-mail address that someone wants to register with, or a user wants to change to.

    It takes nothing from anyone: several may want the same address, and the first to confirm it with the token that is
    mailed there gets it. There is a row also if a user has the address already: a request does the same for both.
    """

    __tablename__ = "unverified_emails"
    __table_args__ = (
        Index("ix_unverified_emails_email", "email"),
        Index("ix_unverified_emails_user_id", "user_id"),
        Index("ix_unverified_emails_expires_at_id", "expires_at", "id"),
        CheckConstraint(
            "CASE WHEN user_id IS NULL THEN num_nonnulls(full_name, hashed_password) = 2"
            " ELSE num_nonnulls(full_name, hashed_password) = 0 END",
            name="whose",
        ),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    email: Email = Field(sa_type=String(254))
    user_id: int | None = Field(default=None, foreign_key="users.id", sa_type=BigInteger)
    """Whose address it is to be; None for a registration."""
    full_name: Name | None = Field(default=None, sa_type=String(200))
    hashed_password: str | None = Field(default=None, max_length=255)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    expires_at: datetime = Field(sa_type=TIMESTAMPTZ)
    told_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When a mail said that a user has the address already. Until this expires, no other mail says so."""
