"""The users table."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol, TypeAlias
from uuid import UUID

import pydantic
from pydantic import AfterValidator, EmailStr
from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, Name, SoftDeletable, Versioned, allowed, now, text_enum
from services.users.rights import SCOPES, Role, Scope

Email = Annotated[EmailStr, pydantic.Field(max_length=254), AfterValidator(str.lower)]


@dataclass(frozen=True, slots=True)
class Presented:
    """Who presents a valid access token. Whether the session has ended is known only to the database."""

    user_id: int
    session_id: UUID


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """Who presents an API key with this SHA-256. Whether it is still valid is known only to the database."""

    user_id: int
    hash: bytes


Credential: TypeAlias = Presented | PresentedKey


class Caller(Protocol):
    """The signed-in user who makes a request, with the attributes that the domains need."""

    @property
    def id(self) -> int: ...

    @property
    def full_name(self) -> str: ...

    @property
    def role(self) -> Role: ...

    @property
    def actor(self) -> str:
        """Who acts, as it is recorded: `user:12`, or `key:UUID` for a program with an API key."""

    def may(self, scope: Scope) -> bool:
        """Whether the caller has this scope."""


class UserBase(SQLModel):
    """The fields that users set themselves."""

    email: Email
    full_name: Name


class User(UserBase, Versioned, SoftDeletable, table=True):
    """A user. The row of a deleted user stays and keeps its address taken, so that the user can be restored.

    An erased user stays, too, with an id and without a name: the books refer to it. Its address is free.
    """

    __tablename__ = "users"
    __table_args__ = (
        Index("uq_users_email_lower", text("lower(email)"), unique=True),
        # What the list of users may be sorted and filtered by.
        Index("ix_users_present", "id", postgresql_where=text("deleted_at IS NULL")),
        *(
            Index(f"ix_users_{column}_id", column, "id", postgresql_where=text("deleted_at IS NULL"))
            for column in ("created_at", "email", "full_name", "role", "is_active")
        ),
        *(
            Index(f"ix_users_{column}_trgm", column, postgresql_using="gin", postgresql_ops={column: "gin_trgm_ops"})
            for column in ("email", "full_name")
        ),
        CheckConstraint(allowed("role", Role), name="role"),
        CheckConstraint("erased_at IS NULL OR deleted_at IS NOT NULL", name="erased"),
        CheckConstraint("length(email) > 0 AND length(full_name) > 0", name="named"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    is_active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    role: Role = Field(
        default=Role.customer, sa_type=text_enum(Role), sa_column_kwargs={"server_default": Role.customer.value}
    )
    role_since: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    """Since when the user has had this role without a break. A trigger sets it with each change of the role, and when
    a deactivated or deleted user comes back."""
    hashed_password: str = Field(max_length=255)
    totp_since: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """Since when a sign-in needs a second factor as well; None if it does not."""
    erased_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When what identifies the user was erased. Such a user stays deleted."""
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    @property
    def actor(self) -> str:
        """See `Caller`."""
        return f"user:{self.id}"

    def may(self, scope: Scope) -> bool:
        """Whether the user has this scope when they act in person."""
        return scope in SCOPES[self.role]
