"""What comes in and goes out about second factors."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from services.fields import RequestBody, Schema, storable
from services.users.schemas import CurrentPassword

MOST_CHARACTERS = 64


def _one_line(code: SecretStr) -> SecretStr:
    storable(code.get_secret_value())
    return code


OneTimeCode = Annotated[SecretStr, Field(min_length=1, max_length=MOST_CHARACTERS), AfterValidator(_one_line)]


class TotpStart(RequestBody):
    """Asks for the secret of an authenticator app, and confirms it with the password."""

    current_password: CurrentPassword


class TotpConfirm(RequestBody):
    """The first code that the app shows."""

    otp: OneTimeCode


class TotpProof(RequestBody):
    """The password and a code: of the app, or a recovery code."""

    current_password: CurrentPassword
    otp: OneTimeCode


class TotpEnrolment(Schema):
    """The secret for an authenticator app. It is shown only here."""

    secret: str
    """To be typed into the app (base32)."""
    otpauth_uri: str
    """To be shown as a QR code, which the app scans."""


class RecoveryCodes(Schema):
    """Codes that are accepted instead of one of the app, once each. They are shown only here."""

    recovery_codes: list[str]


class TotpState(Schema):
    """Whether the caller has a second factor."""

    totp_since: datetime | None
    """Since when a code is asked for at a sign-in; null if none is."""
    required: bool
    """Whether the caller's role needs a second factor."""
    recovery_codes_left: int
