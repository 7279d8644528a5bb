"""Request and response schemas for users."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from services.fields import Changes, Name, RequestBody, Schema, storable
from services.users.models import Email, UserBase
from services.users.rights import Role


def _hashable(password: SecretStr) -> SecretStr:
    storable(password.get_secret_value())
    return password


Password = Annotated[SecretStr, Field(min_length=10, max_length=200), AfterValidator(_hashable)]
CurrentPassword = Annotated[SecretStr, Field(max_length=200), AfterValidator(_hashable)]


class UserCreate(UserBase, RequestBody):
    """A registration. The password must have at least 10 characters, and not be a common one."""

    password: Password


class UserUpdate(Changes):
    """Changes to the signed-in user; omitted fields keep their values.

    A new `password` or another `email` needs `current_password`: an access token alone must not take over the account.
    """

    email: Email | None = None
    full_name: Name | None = None
    password: Password | None = None
    current_password: CurrentPassword | None = None


class Confirmation(RequestBody):
    """The caller's password again, to confirm what they cannot undo."""

    current_password: CurrentPassword


class UserAdminUpdate(Changes):
    """Changes that an operator or an admin makes to a user; omitted fields keep their values."""

    email: Email | None = None
    full_name: Name | None = None
    is_active: bool | None = None
    role: Role | None = None


class UserPublic(UserBase, Schema):
    """A user, as seen by themselves and by staff."""

    email: str
    """As it is stored: it was a valid address when it was set."""
    id: int
    role: Role
    is_active: bool
    version: int
    created_at: datetime


class UserSummary(Schema):
    """A user, as seen by others."""

    id: int
    full_name: str
