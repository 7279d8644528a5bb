"""What comes in about password resets."""

from pydantic import Field, SecretStr

from services.fields import RequestBody
from services.users.models import Email
from services.users.schemas import Password


class ResetRequest(RequestBody):
    """Asks for a mail with a link to set a new password."""

    email: Email


class Reset(RequestBody):
    """A new password, and the token from the mail."""

    token: SecretStr = Field(max_length=200)
    password: Password
