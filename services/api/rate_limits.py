"""Limits on the requests of each caller, by class of route: refused with 429 before anything is done for them.

A caller is a user, however many tokens and API keys they have. Requests without a token or key, or with one that is not
valid, are counted by the address of the client.
"""

from collections import OrderedDict
from collections.abc import Mapping
from time import monotonic

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param

from services.acting import Acting
from services.addresses import place_of
from services.api import rate_metrics as metrics
from services.api.callers import acting_in, client_address
from services.api.rate_classes import LIMITED, RateClass
from services.api.rate_counts import WINDOW, Counts, Quota
from services.api.seen_keys import SeenKeys
from services.api.tokens import Tokens, read_key
from services.errors import RateLimited, Unauthenticated
from services.settings import Settings
from services.users.keys.secret import is_key
from services.users.models import Credential, Presented, PresentedKey

_DISTRUST = 60.0
"""Seconds for which a refused credential does not count as its owner's."""

_MOST_DISTRUSTED = 8192


class RateLimits:
    """Decides for each request whether its caller may send it now. What has the limit 0 is not counted."""

    def __init__(self, settings: Settings, counts: Counts, tokens: Tokens, seen_keys: SeenKeys) -> None:
        self._counts = counts
        self._tokens = tokens
        self._seen_keys = seen_keys
        limits: dict[RateClass, int] = {kind: getattr(settings, f"rate_limit_{kind.value}") for kind in LIMITED}
        self._quotas: Mapping[RateClass, Quota] = {
            kind: Quota(kind.value, most) for kind, most in limits.items() if most
        }
        self._policies = {
            kind: (b"ratelimit-policy", f'"{kind.value}";q={quota.most};w={WINDOW}'.encode())
            for kind, quota in self._quotas.items()
        }
        self._distrusted: OrderedDict[Credential, float] = OrderedDict()

    async def admit(self, request: Request, kind: RateClass, *, public: bool) -> Credential | None:
        """Count the request. Returns the credential by which it was counted; None if it was counted by its address.

        `public` says that its handler does not ask who sends it. Raises `RateLimited`. The reply, whatever it is, gets
        the fields `RateLimit` and `RateLimit-Policy`.
        """
        credential = None if public else self._credential(request)
        if credential is None and not public:
            # It is going to be refused, or its key has to be looked up.
            kind = RateClass.sign_in
        quota = self._quotas.get(kind)
        if quota is None:
            return credential
        caller = _address(request) if credential is None else f"user:{credential.user_id}"
        taken = await self._counts.take(quota, caller)
        # The middleware adds them to the reply.
        request.scope["state"]["fields"] += (
            self._policies[kind],
            (b"ratelimit", f'"{kind.value}";r={taken.left};t={taken.resets_in}'.encode()),
        )
        if not taken.granted:
            metrics.refused_by[kind].inc()
            if credential is not None:
                _name_for_the_audit_log(request, credential)
            raise RateLimited(
                f"more than {quota.most} requests of the class {kind.value!r} within {WINDOW} s; "
                f"send it again in {taken.resets_in} s",
                retry_after=taken.resets_in,
            )
        return credential

    def distrust(self, credential: Credential) -> None:
        """Note that a request with this credential was refused with 401.

        For a while, requests with it are counted by their addresses: someone with a token or key that was revoked must
        not use up its owner's limit.
        """
        self._distrusted[credential] = monotonic() + _DISTRUST
        self._distrusted.move_to_end(credential)
        if len(self._distrusted) > _MOST_DISTRUSTED:
            self._distrusted.popitem(last=False)

    def _credential(self, request: Request) -> Credential | None:
        """Who seems to send the request, found without the database; None if it has no credible token or key."""
        try:
            credential = self._read(_token(request))
        except Unauthenticated:
            return None
        if credential is None or (self._distrusted and self._distrusted.get(credential, 0.0) > monotonic()):
            return None
        return credential

    def _read(self, token: str | None) -> Credential | None:
        if token is None:
            return None
        if not is_key(token):
            return self._tokens.read(token)
        hashed = read_key(token)
        user_id = self._seen_keys.known_owner_of(hashed)
        return None if user_id is None else PresentedKey(user_id, hashed)


def _token(request: Request) -> str | None:
    """What FastAPI's `OAuth2PasswordBearer` finds. `Request.headers` would cost as much as everything else here."""
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            scheme, token = get_authorization_scheme_param(value.decode("latin-1"))
            return token if scheme.lower() == "bearer" else None
    return None


def _address(request: Request) -> str:
    """What the client controls."""
    address = client_address(request)
    return "address:unknown" if address is None else f"address:{place_of(address)}"


def _name_for_the_audit_log(request: Request, credential: Credential) -> None:
    actor = f"user:{credential.user_id}" if isinstance(credential, Presented) else None
    request.state.acting = Acting(actor, credential.user_id, acting_in(request).address)
