"""Access tokens: JWTs (RFC 7519) signed with HMAC-SHA-256."""

from datetime import timedelta
from functools import lru_cache
from math import isfinite

import jwt
from jwt.types import Options

from services.clock import CLOCK
from services.errors import Unauthenticated
from services.fields import MAX_BIGINT, now
from services.settings import Settings

_ALGORITHM = "HS256"
_ISSUER = "waybill"
_REMEMBERED = 8192

# PyJWT would use the host's clock, and would check a token only when it is first seen.
_OPTIONS: Options = {
    "require": ["sub", "exp", "iss"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}

LEEWAY = 30.0
"""Seconds by which a token may be from the future or expired: the clocks of hosts differ."""


class Tokens:
    """Makes and reads access tokens. `ttl` is in seconds.

    A client sends the same token with every request, so the contents of the latest few thousand are cached, and their
    signatures are checked once. Times are checked on each use, by the clock that every process follows.
    """

    def __init__(self, secret: str, ttl: int) -> None:
        self.ttl = ttl
        self._secret = secret
        self._read = lru_cache(maxsize=_REMEMBERED)(self._decode)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Tokens":
        return cls(settings.secret_key.get_secret_value(), settings.access_token_ttl)

    def make(self, user_id: int) -> str:
        at = now()
        claims = {"sub": str(user_id), "iss": _ISSUER, "iat": at, "exp": at + timedelta(seconds=self.ttl)}
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def user_id(self, token: str) -> int:
        """The id of the token's user. Raises `Unauthenticated` if the token is expired, forged or malformed."""
        user_id, begins, expires = self._read(token)
        if not begins - LEEWAY <= CLOCK.time() < expires + LEEWAY:
            raise _invalid()
        return user_id

    def _decode(self, token: str) -> tuple[int, float, float]:
        """The user, and the start and end of the token's validity (seconds since the epoch)."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options=_OPTIONS,
            )
            user_id, expires = int(claims["sub"]), float(claims["exp"])
            issued, begins = float(claims.get("iat", 0)), float(claims.get("nbf", 0))
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as error:
            raise _invalid() from error
        if not 0 < user_id <= MAX_BIGINT or not all(map(isfinite, (issued, begins, expires))):
            raise _invalid()
        return user_id, max(issued, begins), expires


def user_gone() -> Unauthenticated:
    """The error for a valid token of a user who may not use it any more."""
    return Unauthenticated("the user of this access token no longer exists or is deactivated")


def _invalid() -> Unauthenticated:
    return Unauthenticated("the access token is expired or invalid; get a new one from /v1/token")
