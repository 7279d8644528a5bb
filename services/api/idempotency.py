"""The `Idempotency-Key` header: a request that takes effect once, however often it is sent.

After the IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from services.api.dependencies import CurrentUser
from services.api.kept import check_free, is_valid, request_key
from services.errors import IdempotencyKeyInvalid
from services.idempotency.repository import RequestKey
from services.unit_of_work import UnitOfWork

_KEY_RULE = "1 to 255 visible ASCII characters without spaces, such as a UUID"


@dataclass(frozen=True, slots=True)
class Claim:
    """This transaction has claimed the key."""

    request: RequestKey


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
    check_free(await uow.idempotency.take(wanted), wanted)
    request.state.claim = Claim(wanted)


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
