"""The table of API keys."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import pydantic
from pydantic import AfterValidator
from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, Text, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, Name, new_id, now
from services.users.rights import PERSONAL, Scope

_PERSONAL = ",".join(sorted(PERSONAL))
_SCOPES: Any = ARRAY(Text)


def _different(scopes: list[Scope]) -> list[Scope]:
    if len(set(scopes)) < len(scopes):
        raise ValueError("must not list a scope twice")
    return scopes


Scopes = Annotated[list[Scope], pydantic.Field(min_length=1, max_length=100), AfterValidator(_different)]


class ApiKeyBase(SQLModel):
    """The fields that the owner sets."""

    name: Name
    scopes: Scopes = Field(sa_type=_SCOPES)


class ApiKey(ApiKeyBase, table=True):
    """A program's key. It can be used until the first of `expires_at`, `retires_at` and `revoked_at`.

    Its effective scopes are those of `scopes` that the owner's role has. A dead key stays for a while, so that you can
    look up whose `key:ID` is.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("uq_api_keys_hash", "hash", unique=True),
        Index("ix_api_keys_user_id", "user_id"),
        Index("ix_api_keys_replaces", "replaces"),
        Index("ix_api_keys_ended", text("least(expires_at, retires_at, revoked_at)"), "id"),
        CheckConstraint("length(hash) = 32", name="sha256"),
        CheckConstraint("length(name) > 0", name="named"),
        CheckConstraint("cardinality(scopes) > 0", name="scoped"),
        CheckConstraint(f"NOT scopes && '{{{_PERSONAL}}}'::text[]", name="for_programs"),
        CheckConstraint("expires_at > created_at", name="expires_later"),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    user_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    hash: bytes = Field(sa_type=LargeBinary)
    hint: str = Field(max_length=16, sa_type=String(16))
    """The key's beginning and end, by which its owner recognises it."""
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    expires_at: datetime = Field(sa_type=TIMESTAMPTZ)
    last_used_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """Up to a minute behind; the marks of a process that was killed are lost."""
    replaces: UUID | None = Field(default=None, sa_column_args=(ForeignKey("api_keys.id", ondelete="SET NULL"),))
    """The key from which this one was rotated."""
    retires_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When it ends because another key has replaced it."""
    revoked_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
