"""How a request gets into a group: all that can be checked without the database is, and invalid requests go alone.

A group meets only well-formed requests of callers with a valid token or API key. Any other
request takes the single path, which says what is wrong, in its own order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param

from services.api.bodies import read_body
from services.api.groups import Kind
from services.api.kept import is_valid, request_key
from services.api.state import ApiState, api_state, trace_of
from services.api.tokens import read_key
from services.api.turns import Alone, Answered, Intent, Outcome
from services.errors import Unauthenticated
from services.users.keys.secret import is_key
from services.users.models import Credential, PresentedKey

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_KIND = "carried_out_in_groups"


def in_groups(kind: Kind[Any, Any]) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler: its requests are carried out in groups. The handler itself is for those that go alone."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _KIND, kind)
        return handler

    return mark


def kind_of(handler: Callable[..., Any]) -> Kind[Any, Any] | None:
    """The kind of groups that the handler's requests are carried out in; None if there are none."""
    return getattr(handler, _KIND, None)


async def in_group(request: Request, kind: Kind[Any, Any]) -> Outcome:
    """Carry the request out in a group. The whole body has been read. `Alone` if that is not possible."""
    groups = api_state(request).groups
    if not groups.are_open:
        return Alone()
    state = api_state(request)
    intent = await _intent(request, kind, state)
    if intent is None:
        return Alone()
    outcome = await groups.join(kind, intent)
    if isinstance(intent.caller, PresentedKey) and not isinstance(outcome, Alone) and not _is_refused(outcome):
        state.seen_keys.used(intent.caller.hash, intent.caller.user_id)
    return outcome


def _is_refused(outcome: Outcome) -> bool:
    """Whether the caller's key was found to be invalid."""
    return isinstance(outcome, Answered) and outcome.response.status_code == 401


async def _intent(request: Request, kind: Kind[Any, Any], state: ApiState) -> Intent[Any] | None:
    """The request as a member of a group; None if anything is wrong with it, or it writes nothing."""
    headers = request.headers
    key = headers.get("idempotency-key")
    scheme, token = get_authorization_scheme_param(headers.get("authorization"))
    if key is None or not is_valid(key) or scheme.lower() != "bearer":
        return None
    caller = await _credential(token, state)
    if caller is None:
        return None
    wanted = await read_body(request, kind.schema)
    if wanted is None or not kind.writes(wanted):
        return None
    claimed = request_key(request, caller.user_id, key, await request.body())
    return Intent(request, caller, claimed, wanted, trace_of(request))


async def _credential(token: str, state: ApiState) -> Credential | None:
    """Who presents this: whether it is still valid is read with the group."""
    try:
        if not is_key(token):
            return state.tokens.read(token)
        hashed = read_key(token)
    except Unauthenticated:
        return None
    # Not by going alone: beside groups of the same user, such a request may wait long for their account.
    user_id = await state.seen_keys.owner_of(hashed)
    return None if user_id is None else PresentedKey(user_id, hashed)
