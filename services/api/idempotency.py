"""The `Idempotency-Key` header: a request that takes effect once, however often it is sent.

After the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Header, Request

from services.api.dependencies import CurrentUser
from services.api.kept import LONGEST_PATH, check_free, is_valid, request_key, scope
from services.errors import IdempotencyKeyInvalid
from services.idempotency.repository import Free, RequestKey, StoredReply
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn

HEADER = "Idempotency-Key"
_KEY_RULE = "1 to 255 visible ASCII characters without spaces, such as a UUID"


@dataclass(frozen=True, slots=True)
class Claim:
    """This transaction has claimed the key."""

    request: RequestKey
    caller: SignedIn


def forget_key(request: Request) -> None:
    """Store no reply under the request's key, which stays unused: the request has no effect."""
    request.state.claim = None


async def _claim(request: Request, user: CurrentUser, key: str | None, *, required: bool) -> None:
    if key is None:
        if required:
            raise IdempotencyKeyInvalid(f"the Idempotency-Key header is required here: {_KEY_RULE}")
        return
    if not is_valid(key):
        raise IdempotencyKeyInvalid(f"the Idempotency-Key is malformed; it must be {_KEY_RULE}")
    wanted = request_key(request, user.id, key, await request.body())
    uow: UnitOfWork = request.state.uow
    found = await uow.idempotency.take(wanted)
    path = scope(request)
    if isinstance(found, Free) and wanted.path != path:
        # The release before stored the reply under the beginning of the path, which other paths may share.
        before = await uow.idempotency.take(replace(wanted, path=path[:LONGEST_PATH]))
        if not isinstance(before, StoredReply) or before.fingerprint == wanted.fingerprint:
            found = before
    check_free(found, wanted, user)
    request.state.claim = Claim(wanted, user)


_Key = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description=f"Makes the request take effect once, however often it is sent. {_KEY_RULE}.",
    ),
]


async def required(request: Request, user: CurrentUser, key: _Key = None) -> None:
    await _claim(request, user, key, required=True)


async def accepted(request: Request, user: CurrentUser, key: _Key = None) -> None:
    await _claim(request, user, key, required=False)


IDEMPOTENCY_KEY_REQUIRED = Depends(required)
IDEMPOTENCY_KEY_ACCEPTED = Depends(accepted)
