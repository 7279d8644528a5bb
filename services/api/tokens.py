"""Access tokens: JWTs (RFC 7519) signed with HMAC-SHA-256."""

import hashlib
from datetime import timedelta
from functools import lru_cache
from math import isfinite
from uuid import UUID, uuid4

import jwt
from jwt.types import Options

from services.clock import CLOCK
from services.errors import Unauthenticated
from services.fields import MAX_BIGINT, now
from services.settings import Settings
from services.users.keys.secret import LENGTH, hash_of, is_well_formed
from services.users.models import Credential, Presented

_ALGORITHM = "HS256"
_ISSUER = "waybill"
_REMEMBERED = 8192

# PyJWT would use the host's clock, and would check a token only when it is first seen.
_OPTIONS: Options = {
    "require": ["sub", "sid", "jti", "exp", "iss", "aud"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}

LEEWAY = 30.0
"""Seconds by which a token may be from the future or expired: the clocks of hosts differ."""


class Tokens:
    """Makes and reads access tokens. `ttl` is in seconds.

    The first of the `secrets` signs; a token that any of them signed is valid. `audience` names the installation's
    part that tokens are for: ids of users are the same in each schema.

    A client sends the same token with every request, so the contents of the latest few thousand are cached, and their
    signatures are checked once. Times are checked on each use, by the clock that every process follows.
    """

    def __init__(self, *secrets: str, audience: str, ttl: int) -> None:
        self.ttl = ttl
        self._audience = audience
        self._keys = {_key_id(secret): secret for secret in secrets}
        self._signing = secrets[0]
        self._read = lru_cache(maxsize=_REMEMBERED)(self._decode)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Tokens":
        secrets = [
            secret.get_secret_value() for secret in (settings.secret_key, settings.secret_key_previous) if secret
        ]
        audience = f"{settings.environment.value}/{settings.database_schema}"
        return cls(*secrets, audience=audience, ttl=settings.access_token_ttl)

    def make(self, caller: Presented) -> str:
        at = now()
        claims = {
            "iss": _ISSUER,
            "aud": self._audience,
            "sub": str(caller.user_id),
            "sid": str(caller.session_id),
            "jti": uuid4().hex,
            "iat": at,
            "exp": at + timedelta(seconds=self.ttl),
        }
        return jwt.encode(claims, self._signing, algorithm=_ALGORITHM, headers={"kid": _key_id(self._signing)})

    def read(self, token: str) -> Presented:
        """Who presents the token. Raises `Unauthenticated` if it is expired, forged, malformed or for another service.

        It does not say whether its session has ended: see `UserRepository.signed_in`.
        """
        caller, begins, expires = self._read(token)
        if not begins - LEEWAY <= CLOCK.time() < expires + LEEWAY:
            raise _invalid()
        return caller

    def _decode(self, token: str) -> tuple[Presented, float, float]:
        """The caller, and the start and end of the token's validity (seconds since the epoch)."""
        try:
            secret = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token, secret, algorithms=[_ALGORITHM], issuer=_ISSUER, audience=self._audience, options=_OPTIONS
            )
            caller = Presented(int(claims["sub"]), UUID(claims["sid"]))
            issued, begins = float(claims.get("iat", 0)), float(claims.get("nbf", 0))
            expires = float(claims["exp"])
        except (jwt.InvalidTokenError, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise _invalid() from error
        if not 0 < caller.user_id <= MAX_BIGINT or not all(map(isfinite, (issued, begins, expires))):
            raise _invalid()
        return caller, max(issued, begins), expires


def _key_id(secret: str) -> str:
    """A name for the key (`kid`) that all processes with the same secret agree on."""
    return hashlib.sha256(f"waybill signing key {secret}".encode()).hexdigest()[:16]


def read_key(key: str) -> bytes:
    """The SHA-256 of an API key. Raises `Unauthenticated` if it is malformed, without asking the database."""
    if not is_well_formed(key):
        raise Unauthenticated(f"the API key is malformed: it must have {LENGTH} characters, exactly as it was issued")
    return hash_of(key)


def no_longer_valid(credential: Credential) -> Unauthenticated:
    """The error for a credential that may no longer be used."""
    return session_ended() if isinstance(credential, Presented) else key_invalid()


def session_ended() -> Unauthenticated:
    """The error for a valid token whose session has ended, or whose user was deleted or deactivated."""
    return Unauthenticated("the session of this access token has ended; sign in again")


def key_invalid() -> Unauthenticated:
    """The error for a well-formed API key that cannot be used."""
    return Unauthenticated("the API key is unknown, expired or revoked; its owner can make a new one at /v1/api-keys")


def _invalid() -> Unauthenticated:
    return Unauthenticated("the access token is expired or invalid; get a new one from /v1/token")
