"""What comes in and goes out about sessions and tokens."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import Field, SecretStr

from services.fields import Schema


class Grant(StrEnum):
    """How a client shows who it acts for (RFC 6749)."""

    password = "password"  # noqa: S105  (the grant's name)
    refresh_token = "refresh_token"  # noqa: S105  (the grant's name)


class TokenRequest(Schema):
    """The form of RFC 6749, sections 4.3.2 and 6. Fields that are not listed are ignored, as it requires."""

    grant_type: Grant = Grant.password
    username: str | None = Field(default=None, description="For the grant `password`: the e-mail address.")
    password: SecretStr | None = Field(default=None, description="For the grant `password`.")
    otp: SecretStr | None = Field(
        default=None,
        max_length=64,
        description="For the grant `password`, if the user has a second factor: the code of their app, or a recovery "
        "code.",
    )
    refresh_token: SecretStr | None = Field(default=None, description="For the grant `refresh_token`.")
    scope: str = Field(default="", description="Ignored: a token has all of its user's rights.")


class Token(Schema):
    """An access token (OAuth 2.0, RFC 6749 section 5.1), and a refresh token, with which to get the next one, once.

    `expires_in` is in seconds.
    """

    access_token: str
    token_type: str = "bearer"  # noqa: S105  (the scheme's name)
    expires_in: int
    refresh_token: str


class SessionPublic(Schema):
    """A session of the caller that has not ended."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    """When it was begun or last extended with a refresh token."""
    expires_at: datetime
    """When it ends unless it is extended."""
    address: str | None
    user_agent: str | None
    current: bool
    """Whether this request was made in it."""


class Sessions(Schema):
    """The caller's sessions, the last used first. There are never more than `MOST_SESSIONS`."""

    data: list[SessionPublic]
