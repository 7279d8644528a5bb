"""What comes in and goes out about users."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, EmailStr, Field, SecretStr
from sqlmodel import SQLModel

from services.fields import Changes, Name, RequestBody, storable
from services.users.models import Role, UserBase

Email = Annotated[EmailStr, Field(max_length=254), AfterValidator(str.lower)]


def _hashable(password: SecretStr) -> SecretStr:
    storable(password.get_secret_value())
    return password


Password = Annotated[SecretStr, Field(min_length=10, max_length=200), AfterValidator(_hashable)]


class UserCreate(UserBase, RequestBody):  # type: ignore[misc]  # SQLModel has a wider type for model_config
    """Registration. The password is at least 10 characters."""

    email: Email
    full_name: Name
    password: Password


class UserUpdate(Changes):
    """What users may change of themselves; what is left out stays."""

    full_name: Name | None = None
    password: Password | None = None


class UserAdminUpdate(Changes):
    """What operators may change of a user; what is left out stays."""

    full_name: Name | None = None
    is_active: bool | None = None
    role: Role | None = None


class UserPublic(UserBase):
    """A user, as that user and operators see them."""

    id: int
    role: Role
    is_active: bool
    version: int
    created_at: datetime


class UserSummary(SQLModel):
    """A user, as others see them."""

    id: int
    full_name: str


class Token(SQLModel):
    """An access token (OAuth 2.0, RFC 6749 section 5.1); `expires_in` is in seconds."""

    access_token: str
    token_type: str = "bearer"  # noqa: S105  (the scheme's name)
    expires_in: int
