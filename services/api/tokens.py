"""Access tokens: JWTs (RFC 7519) signed with HMAC-SHA-256."""

from dataclasses import dataclass
from datetime import timedelta

import jwt

from services.errors import Unauthenticated
from services.fields import MAX_BIGINT, now
from services.settings import Settings

_ALGORITHM = "HS256"
_ISSUER = "waybill"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Makes and reads access tokens. `ttl` is in seconds."""

    secret: str
    ttl: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "Tokens":
        return cls(settings.secret_key.get_secret_value(), settings.access_token_ttl)

    def make(self, user_id: int) -> str:
        at = now()
        claims = {"sub": str(user_id), "iss": _ISSUER, "iat": at, "exp": at + timedelta(seconds=self.ttl)}
        return jwt.encode(claims, self.secret, algorithm=_ALGORITHM)

    def user_id(self, token: str) -> int:
        """Whom the token was made for. Raises `Unauthenticated` where it is expired, forged or malformed."""
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["sub", "exp", "iss"]},
            )
            user_id = int(claims["sub"])
        except (jwt.InvalidTokenError, ValueError) as error:
            raise Unauthenticated("the access token is expired or invalid; get a new one from /v1/token") from error
        if not 0 < user_id <= MAX_BIGINT:
            raise Unauthenticated("the access token is invalid")
        return user_id
