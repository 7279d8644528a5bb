"""Replies that are kept under an `Idempotency-Key`: which are kept, what of them, and how they are sent again."""

import hashlib
import re
from urllib.parse import quote

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, Counter

from services.errors import IdempotencyKeyReused, ReplayForbidden, RequestInFlight
from services.idempotency.repository import Free, InFlight, KeptReply, RequestKey, StoredReply
from services.users.repository import SignedIn
from services.users.rights import Role

REPLAYED_HEADER = "Idempotency-Replayed"
_KEPT = ("content-type", "location", "etag")
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_NOT_KEPT = frozenset({401, 403, 429})

LONGEST_PATH = 200
"""Characters of a path that are stored with a key. A longer one is stored with the SHA-256 of all of it at its end."""


registry = CollectorRegistry()
_outcomes = Counter(
    "waybill_idempotency_outcomes",
    "Requests with an Idempotency-Key: stored (the reply of a new key), replayed, in_flight, reused, forbidden.",
    ("outcome",),
    registry=registry,
)
STORED, _REPLAYED, _IN_FLIGHT, _REUSED, _FORBIDDEN = (
    _outcomes.labels(name) for name in ("stored", "replayed", "in_flight", "reused", "forbidden")
)
"""Counters; `STORED` is increased by what commits the reply."""


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
    path = scope(request)
    if len(path) > LONGEST_PATH:
        # An escaped path has no `#`.
        digest = hashlib.sha256(path.encode()).hexdigest()
        path = f"{path[: LONGEST_PATH - len(digest) - 1]}#{digest}"
    return RequestKey(caller_id, request.method, path, key, hashlib.sha256(body).digest())


def scope(request: Request) -> str:
    """The whole path of the request, escaped as it was sent: PostgreSQL's text cannot hold U+0000."""
    return quote(request.url.path)


def check_free(found: StoredReply | InFlight | Free, wanted: RequestKey, caller: SignedIn) -> None:
    """Raises `RequestInFlight`, `IdempotencyKeyReused`, `ReplayForbidden` or `ReplayStored`, unless the key was free.

    Callers see what was made for a role that theirs covers, and with an API key only what was made for a key without
    further scopes: their own, or the one from which it was rotated.
    """
    match found:
        case InFlight():
            _IN_FLIGHT.inc()
            raise RequestInFlight("a request with this Idempotency-Key is still being processed; retry in a second")
        case StoredReply() as stored:
            if stored.fingerprint != wanted.fingerprint:
                _REUSED.inc()
                raise IdempotencyKeyReused("this Idempotency-Key was already used with a different body; use a new key")
            if stored.role is not None and stored.role not in {one.value for one in Role if caller.role.covers(one)}:
                _FORBIDDEN.inc()
                raise ReplayForbidden(
                    f"this request was processed when you had the role {stored.role}; its reply is not shown to the "
                    f"role {caller.role.value}"
                )
            if caller.scopes is not None and (
                stored.scopes is None or not caller.scopes.issuperset(stored.scopes.split())
            ):
                _FORBIDDEN.inc()
                raise ReplayForbidden(
                    "this request was processed for someone who may do more than this API key; its reply is not shown "
                    "to the key"
                )
            raise ReplayStored(stored)


def is_kept(status: int) -> bool:
    """Whether a refusal with this status is the key's outcome; otherwise the key can be used again."""
    return status not in _NOT_KEPT and status < 500


def kept_reply(key: RequestKey, caller: SignedIn, reply: Response) -> KeptReply:
    """The reply to this caller as it is stored under its key."""
    headers = {name: reply.headers[name] for name in _KEPT if name in reply.headers}
    scopes = None if caller.scopes is None else " ".join(sorted(caller.scopes))
    return KeptReply(key, caller.role.value, scopes, reply.status_code, headers, bytes(reply.body))


def replayed(stored: StoredReply) -> Response:
    """The stored reply as a response, marked as a replay."""
    _REPLAYED.inc()
    return Response(stored.body, stored.status, headers={**stored.headers, REPLAYED_HEADER: "true"})
