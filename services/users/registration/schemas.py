"""What comes in to confirm an address."""

from pydantic import Field, SecretStr

from services.fields import RequestBody
from services.users.schemas import CurrentPassword


class EmailConfirmation(RequestBody):
    """The token from the mail, and the password: of the registration, or of the user whose address it is to be.

    The owner of a mailbox must not confirm what a stranger has registered with a password of their own.
    """

    token: SecretStr = Field(max_length=200)
    password: CurrentPassword
