"""What comes in and goes out about API keys."""

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from pydantic import Field

from services.fields import Instant, RequestBody, Schema
from services.users.keys.models import ApiKeyBase
from services.users.schemas import CurrentPassword

LONGEST_OVERLAP = timedelta(days=7)

Overlap = Annotated[
    int,
    Field(
        strict=True,
        ge=0,
        le=int(LONGEST_OVERLAP.total_seconds()),
        description="Seconds for which the replaced key can still be used. 0 ends it at once.",
    ),
]
_DAY = 86_400


class ApiKeyCreate(ApiKeyBase, RequestBody):
    """A new API key.

    `scopes` are among those of the owner's role, without `profile:*`, `keys:write` and `roles:write`.

    It needs `current_password`: a stolen access token must not be enough for a key that outlives it.
    """

    expires_at: Instant | None = Field(
        default=None, description="At most `WAYBILL_API_KEY_MAX_TTL` from now, a year by default, which is the default."
    )
    current_password: CurrentPassword


class OwnRotation(RequestBody):
    """The key that makes the request is replaced by a new one."""

    overlap: Overlap = _DAY


class Rotation(OwnRotation):
    """A key is replaced by a new one. It needs `current_password`, as a new key does."""

    current_password: CurrentPassword


class ApiKeyPublic(Schema):
    """An API key, as its owner and admins see it. It does not contain the key itself."""

    id: UUID
    name: str
    hint: str
    """The key's beginning and end."""
    scopes: list[str]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    """Up to a minute behind."""
    replaces: UUID | None
    """The key from which it was rotated."""
    retires_at: datetime | None
    """When it ends because it has been rotated; None if it has not."""


class ApiKeyIssued(ApiKeyPublic):
    """A new API key. `key` is shown only in this reply."""

    key: str


class ApiKeys(Schema):
    """The API keys that can be used, the newest first."""

    data: list[ApiKeyPublic]
