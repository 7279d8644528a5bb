"""Replies that are kept under an `Idempotency-Key`: which are kept, what of them, and how they are sent again."""

import hashlib
import re
from urllib.parse import quote

from fastapi import Request, Response

from services.errors import IdempotencyKeyReused, RequestInFlight
from services.idempotency.repository import Free, InFlight, KeptReply, RequestKey, StoredReply

REPLAYED_HEADER = "Idempotency-Replayed"
_KEPT = ("content-type", "location", "etag")
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_NOT_KEPT = frozenset({401, 403, 429})


class ReplayStored(Exception):
    """The request has already taken effect: its stored reply is the answer."""

    def __init__(self, stored: StoredReply) -> None:
        super().__init__("stored reply")
        self.stored = stored


def is_valid(key: str) -> bool:
    """Whether the header is well formed."""
    return _KEY.fullmatch(key) is not None


def request_key(request: Request, caller_id: int, key: str, body: bytes) -> RequestKey:
    """What identifies this request."""
    # The path is escaped as it was sent: PostgreSQL's text cannot hold U+0000.
    path = quote(request.url.path)[:200]
    return RequestKey(caller_id, request.method, path, key, hashlib.sha256(body).digest())


def check_free(found: StoredReply | InFlight | Free, wanted: RequestKey) -> None:
    """Raises `RequestInFlight`, `IdempotencyKeyReused` or `ReplayStored`, unless the key was free."""
    match found:
        case InFlight():
            raise RequestInFlight("a request with this Idempotency-Key is still being processed; retry in a second")
        case StoredReply() as stored:
            if stored.fingerprint != wanted.fingerprint:
                raise IdempotencyKeyReused("this Idempotency-Key was already used with a different body; use a new key")
            raise ReplayStored(stored)


def is_kept(status: int) -> bool:
    """Whether a refusal with this status is the key's outcome; otherwise the key can be used again."""
    return status not in _NOT_KEPT and status < 500


def kept_reply(key: RequestKey, reply: Response) -> KeptReply:
    """The reply as it is stored under its key."""
    headers = {name: reply.headers[name] for name in _KEPT if name in reply.headers}
    return KeptReply(key, reply.status_code, headers, bytes(reply.body))


def replayed(stored: StoredReply) -> Response:
    """The stored reply as a response, marked as a replay."""
    return Response(stored.body, stored.status, headers={**stored.headers, REPLAYED_HEADER: "true"})
