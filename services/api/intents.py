"""How a request gets into a group: all that can be checked without the database is, and invalid requests go alone.

A group meets only well-formed requests of callers with a valid token. Any other request takes the single path, which
says what is wrong, in its own order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param

from services.api.bodies import read_body
from services.api.groups import Kind
from services.api.kept import is_valid, request_key
from services.api.state import api_state, trace_of
from services.api.tokens import Tokens
from services.api.turns import Alone, Intent, Outcome
from services.errors import Unauthenticated

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
    intent = await _intent(request, kind, api_state(request).tokens)
    return Alone() if intent is None else await groups.join(kind, intent)


async def _intent(request: Request, kind: Kind[Any, Any], tokens: Tokens) -> Intent[Any] | None:
    """The request as a member of a group; None if anything is wrong with it, or it writes nothing."""
    headers = request.headers
    key = headers.get("idempotency-key")
    scheme, token = get_authorization_scheme_param(headers.get("authorization"))
    if key is None or not is_valid(key) or scheme.lower() != "bearer":
        return None
    try:
        caller = tokens.read(token)
    except Unauthenticated:
        return None
    wanted = await read_body(request, kind.schema)
    if wanted is None or not kind.writes(wanted):
        return None
    claimed = request_key(request, caller.user_id, key, await request.body())
    return Intent(request, caller, claimed, wanted, trace_of(request))
