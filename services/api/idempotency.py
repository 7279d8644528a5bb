"""The `Idempotency-Key` header: a request that takes effect once, however often it is sent.

After the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Header, Request, Response

from services.api.dependencies import CurrentUser
from services.errors import IdempotencyKeyInvalid, IdempotencyKeyReused, RequestInFlight
from services.idempotency.repository import Free, InFlight, RequestKey, StoredReply
from services.unit_of_work import UnitOfWork

REPLAYED_HEADER = "Idempotency-Replayed"
_KEPT = ("content-type", "location", "etag")
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_KEY_RULE = "1 to 255 visible ASCII characters without spaces, such as a UUID"


@dataclass(frozen=True, slots=True)
class Claim:
    """This transaction has claimed the key."""

    request: RequestKey


class ReplayStored(Exception):
    """The request has already taken effect: its stored reply is the answer."""

    def __init__(self, stored: StoredReply) -> None:
        super().__init__("stored reply")
        self.stored = stored


def replayed(stored: StoredReply) -> Response:
    """The stored reply as a response, marked as a replay."""
    return Response(stored.body, stored.status, headers={**stored.headers, REPLAYED_HEADER: "true"})


def kept_headers(response: Response) -> dict[str, str]:
    """The headers of a reply that are stored with it."""
    return {name: response.headers[name] for name in _KEPT if name in response.headers}


def forget_key(request: Request) -> None:
    """Store no reply under the request's key, which stays unused: the request has no effect."""
    request.state.claim = None


async def _claim(request: Request, user: CurrentUser, key: str | None, *, required: bool) -> None:
    if key is None:
        if required:
            raise IdempotencyKeyInvalid(f"the Idempotency-Key header is required here: {_KEY_RULE}")
        return
    if not _KEY.fullmatch(key):
        raise IdempotencyKeyInvalid(f"the Idempotency-Key is malformed; it must be {_KEY_RULE}")
    wanted = RequestKey(
        caller_id=user.id,
        method=request.method,
        # Escaped as it was sent: PostgreSQL's text cannot hold U+0000.
        path=quote(request.url.path)[:200],
        key=key,
        fingerprint=hashlib.sha256(await request.body()).digest(),
    )
    uow: UnitOfWork = request.state.uow
    match await uow.idempotency.take(wanted):
        case Free():
            request.state.claim = Claim(wanted)
        case InFlight():
            raise RequestInFlight("a request with this Idempotency-Key is still being processed; retry in a second")
        case StoredReply() as stored:
            if stored.fingerprint != wanted.fingerprint:
                raise IdempotencyKeyReused("this Idempotency-Key was already used with a different body; use a new key")
            raise ReplayStored(stored)


_Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description=f"Makes the request take effect once, however often it is sent. {_KEY_RULE}.",
    ),
]


async def _required(request: Request, user: CurrentUser, key: _Key = None) -> None:
    await _claim(request, user, key, required=True)


async def _accepted(request: Request, user: CurrentUser, key: _Key = None) -> None:
    await _claim(request, user, key, required=False)


IDEMPOTENCY_KEY_REQUIRED = Depends(_required)
IDEMPOTENCY_KEY_ACCEPTED = Depends(_accepted)
