"""Access tokens: JWTs (RFC 7519) signed with HMAC-SHA-256."""

import time
from datetime import timedelta
from functools import lru_cache

import jwt

from services.errors import Unauthenticated
from services.fields import MAX_BIGINT, now
from services.settings import Settings

_ALGORITHM = "HS256"
_ISSUER = "waybill"
_REMEMBERED = 8192


class Tokens:
    """Makes and reads access tokens. `ttl` is in seconds.

    A client sends the same token with every request: what one says is remembered, for the latest few thousand, so that
    its signature is checked once. Whether it has expired is looked at each time.
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
        """Whom the token was made for. Raises `Unauthenticated` where it is expired, forged or malformed."""
        user_id, expires = self._read(token)
        if expires <= time.time():
            raise _invalid()
        return user_id

    def _decode(self, token: str) -> tuple[int, float]:
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["sub", "exp", "iss"]},
            )
            user_id, expires = int(claims["sub"]), float(claims["exp"])
        except (jwt.InvalidTokenError, ValueError) as error:
            raise _invalid() from error
        if not 0 < user_id <= MAX_BIGINT:
            raise _invalid()
        return user_id, expires


def _invalid() -> Unauthenticated:
    return Unauthenticated("the access token is expired or invalid; get a new one from /v1/token")
