"""One-time codes (RFC 6238), recovery codes, and the encryption of the secrets that codes are made from."""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.clock import CLOCK
from services.fields import sha256_of
from services.settings import Settings

if TYPE_CHECKING:
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.twofactor.totp import TOTP

STEP = 30
"""Seconds for which a code is shown."""
RECOVERY_CODES = 10

_DIGITS = 6
_DRIFT = 1
"""Steps by which the clock of a phone may be wrong, either way (RFC 6238, section 5.2)."""
_SECRET_BYTES = 20
"""As long as the hash, as RFC 4226 recommends."""
_RECOVERY_BYTES = 15
_RECOVERY_GROUP = 4
_CODE = re.compile(rf"[0-9]{{{_DIGITS}}}", re.ASCII)
_SEPARATORS = re.compile(r"[\s-]+")


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted secret, and the name of the key that it was encrypted with."""

    token: bytes
    key_id: str


class Secrets:
    """Encrypts secrets at rest. The first of the `keys` encrypts; what any of them encrypted can be read.

    Each user's secret has a key of its own, so that a sealed secret which is copied to another user's row is worthless.
    """

    def __init__(self, *keys: str) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self.key_id = _key_id(keys[0])
        self.previous_ids = [key_id for key_id in self._keys if key_id != self.key_id]

    @classmethod
    def from_settings(cls, settings: Settings) -> "Secrets":
        return cls(*(key.get_secret_value() for key in (settings.secret_key, settings.secret_key_previous) if key))

    def seal(self, user_id: int, secret: bytes) -> Sealed:
        """Encrypt the user's secret."""
        return Sealed(_fernet(self._keys[self.key_id], user_id).encrypt(secret), self.key_id)

    def open(self, user_id: int, sealed: Sealed) -> bytes | None:
        """The user's secret; None if its key is no longer known, or it is not this user's."""
        # Imported here, as below: a worker, which imports this module, needs it only while a key is replaced.
        from cryptography.fernet import InvalidToken

        key = self._keys.get(sealed.key_id)
        try:
            return None if key is None else _fernet(key, user_id).decrypt(sealed.token)
        except InvalidToken:
            return None


def new_secret() -> bytes:
    """A secret for an authenticator app."""
    return secrets.token_bytes(_SECRET_BYTES)


def shown_secret(secret: bytes) -> str:
    """The secret as it is typed into an authenticator app (base32)."""
    return base64.b32encode(secret).decode()


def uri_of(secret: bytes, account: str, issuer: str) -> str:
    """The `otpauth` address of the secret, which is shown as a QR code."""
    return _totp(secret).get_provisioning_uri(account, issuer)


def code_at(secret: bytes, step: int) -> str:
    """The code of a time step."""
    return _totp(secret).generate(step * STEP).decode()


def current_step() -> int:
    """The time step of now, by the clock of the database."""
    return int(CLOCK.time()) // STEP


def step_of(secret: bytes, code: str) -> int | None:
    """The time step, about now, whose code this is; None if it is none of them."""
    if not is_of_an_app(code):
        return None
    now = current_step()
    found = None
    for step in range(now - _DRIFT, now + _DRIFT + 1):
        # All of them are compared, so that the time it takes does not tell which one it was.
        if hmac.compare_digest(code_at(secret, step), code):
            found = step
    return found


def typed(code: str) -> str:
    """A code without the spaces and hyphens that people type."""
    return _SEPARATORS.sub("", code).upper()


def is_of_an_app(code: str) -> bool:
    """Whether this looks like a code of an authenticator app. Otherwise it may be a recovery code."""
    return _CODE.fullmatch(code) is not None


def new_recovery_codes() -> list[str]:
    """Random codes of 120 bits, such as `MZXW-6YTB-OI2X-G5DF-MFZW-KZDL`."""
    codes = (base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode() for _ in range(RECOVERY_CODES))
    starts = range(0, _RECOVERY_BYTES * 8 // 5, _RECOVERY_GROUP)
    return ["-".join(code[start : start + _RECOVERY_GROUP] for start in starts) for code in codes]


def hash_of(recovery_code: str) -> bytes:
    """What is stored of a recovery code. 120 random bits need no slow hash."""
    return sha256_of(typed(recovery_code))


def _totp(secret: bytes) -> "TOTP":
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.twofactor.totp import TOTP

    # SHA-1 and 6 digits are what all authenticator apps know; HMAC does not need its hash to resist collisions.
    return TOTP(secret, _DIGITS, SHA1(), STEP)  # noqa: S303


def _fernet(key: str, user_id: int) -> "Fernet":
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), 32, None, f"waybill totp secret of user {user_id}".encode()).derive(key.encode())
    return Fernet(base64.urlsafe_b64encode(derived))


def _key_id(key: str) -> str:
    return hashlib.sha256(f"waybill totp key {key}".encode()).hexdigest()[:16]
