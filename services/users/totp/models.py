"""Secrets of authenticator apps, and recovery codes."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, String, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, now


class TotpSecret(SQLModel, table=True):
    """The secret that a user's authenticator app has. It counts only once the user has confirmed it.

    Whether they have, `users.totp_since` says.
    """

    __tablename__ = "totp_secrets"
    __table_args__ = (
        Index("ix_totp_secrets_key_id_user_id", "key_id", "user_id"),
        CheckConstraint("last_step >= 0", name="step"),
    )

    user_id: int = Field(
        primary_key=True,
        foreign_key="users.id",
        sa_type=BigInteger,
        sa_column_kwargs={"autoincrement": False},
    )
    sealed: bytes = Field(sa_type=LargeBinary)
    """The secret, encrypted with a key that is derived from `WAYBILL_SECRET_KEY`."""
    key_id: str = Field(sa_type=String(16))
    """Names that key."""
    last_step: int | None = Field(default=None, sa_type=BigInteger)
    """The time step of the latest code that was used. Codes of this step and of earlier ones are refused."""
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )


class RecoveryCode(SQLModel, table=True):
    """The SHA-256 of a code that is accepted once instead of one of the app. It is deleted when it is used."""

    __tablename__ = "recovery_codes"
    __table_args__ = (CheckConstraint("length(hash) = 32", name="sha256"),)

    user_id: int = Field(
        primary_key=True,
        foreign_key="users.id",
        sa_type=BigInteger,
        sa_column_kwargs={"autoincrement": False},
    )
    hash: bytes = Field(primary_key=True, sa_type=LargeBinary)
