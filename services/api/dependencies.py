"""Dependencies of routes: the unit of work, the caller, the page, the version the caller read."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Header, Query, Request, Response
from fastapi.security import OAuth2PasswordBearer

from services.api.callers import client_address
from services.api.reads import LAG_HEADER, POSITION_HEADER, parse_position, shown_lag
from services.api.rights import check_rights
from services.api.state import ApiState, api_state
from services.api.tokens import key_invalid, read_key, session_ended
from services.cursors import LONGEST
from services.errors import InvalidInput, Unauthenticated, VersionRequired
from services.fields import made_storable
from services.query import Listing, PageQuery
from services.replica import Position
from services.totals import MAX_COUNTED, Count
from services.unit_of_work import UnitOfWork
from services.users.keys.secret import is_key
from services.users.repository import SignedIn
from services.users.rights import Scope
from services.users.sessions import models

_bearer = OAuth2PasswordBearer(
    tokenUrl="/v1/token",
    refreshUrl="/v1/token",
    scopes={scope.value: scope.meaning for scope in Scope},
    auto_error=False,
)
_ETAG = re.compile(r'(?:W/)?"([1-9][0-9]{0,9})"', re.ASCII)


# Dependencies are coroutines even if they await nothing: FastAPI runs plain functions in a thread each time.
async def _state(request: Request) -> ApiState:
    return api_state(request)


State = Annotated[ApiState, Depends(_state)]


async def _work(request: Request) -> UnitOfWork:
    uow: UnitOfWork = request.state.uow
    return uow


Work = Annotated[UnitOfWork, Depends(_work)]
"""The request's unit of work. Routes and services never commit it; the transaction edge does."""


async def _position(
    position: Annotated[
        str | None,
        Header(
            alias=POSITION_HEADER,
            description="The `Waybill-Position` header of the reply to a write: this reply will include that write.",
        ),
    ] = None,
) -> Position | None:
    return None if position is None else parse_position(position)


async def reads_replica(
    request: Request, response: Response, state: State, position: Annotated[Position | None, Depends(_position)]
) -> AsyncIterator[UnitOfWork]:
    primary: UnitOfWork = request.state.uow
    current_at = None if request.state.avoids_replica else state.reads.choose()
    if current_at is None:
        yield primary
        return
    # From here on, what fails is repeated on the primary. Its connection goes back to the pool.
    request.state.on_replica = True
    await primary.rollback()
    async with state.reads.open(position) as uow:
        if uow is not None:
            # A look that has ended meanwhile may no longer know.
            response.headers[LAG_HEADER] = shown_lag(current_at)
        request.state.on_replica = uow is not None
        yield uow or primary


ReplicaWork = Annotated[UnitOfWork, Depends(reads_replica, scope="function")]
"""A unit of work for lists, searches and summaries: they may lag behind the caller's writes unless it sends a position.

Only for routes that write nothing, and for nothing that decides, such as what the caller may do.
"""


async def current_user(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> SignedIn:
    """Who makes the request. Raises `Unauthenticated`, and `Forbidden` without the scope that the handler declares."""
    if token is None:
        raise Unauthenticated("an access token or an API key is required: Authorization: Bearer TOKEN")
    user = await (_with_key(request, token) if is_key(token) else _signed_in(request, token))
    uow: UnitOfWork = request.state.uow
    uow.act_as(user.actor, user.id)
    request.state.acting = uow.acting
    check_rights(user, request.scope["endpoint"], api_state(request).settings)
    return user


async def _signed_in(request: Request, token: str) -> SignedIn:
    state, uow = api_state(request), request.state.uow
    user: SignedIn | None = await uow.users.signed_in(
        state.tokens.read(token), require_totp=state.settings.requires_totp
    )
    if user is None:
        raise session_ended()
    return user


async def _with_key(request: Request, key: str) -> SignedIn:
    state, uow = api_state(request), request.state.uow
    hashed = read_key(key)
    user: SignedIn | None = await uow.users.with_key(hashed, require_totp=state.settings.requires_totp)
    if user is None:
        raise key_invalid()
    state.seen_keys.used(hashed, user.id)
    return user


CurrentUser = Annotated[SignedIn, Depends(current_user)]
"""The caller, who has the scope that the handler declares."""


async def known_user(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> SignedIn | None:
    """Who makes a request for which no one has to sign in; None if they send no token. Raises `Unauthenticated`."""
    return None if token is None else await current_user(request, token)


KnownUser = Annotated[SignedIn | None, Depends(known_user)]
"""The caller of a public route that shows some callers more; None if they do not say who they are."""


async def needs_version(
    if_match: Annotated[str | None, Header(alias="If-Match", description="The ETag of the version you read.")] = None,
) -> int:
    if if_match is None:
        raise VersionRequired('the If-Match header is required: the ETag of the version you read, such as "3"')
    matched = _ETAG.fullmatch(if_match.strip())
    if matched is None:
        raise InvalidInput('If-Match must be a single ETag as the server returned it, such as "3"')
    return int(matched[1])


IfMatch = Annotated[int, Depends(needs_version)]
"""The version the caller read (RFC 9110, section 13.1.1)."""


async def _device(request: Request) -> models.Device:
    agent = made_storable(request.headers.get("user-agent", "")).strip()[: models.LONGEST_USER_AGENT]
    return models.Device(client_address(request), agent or None)


Device = Annotated[models.Device, Depends(_device)]


def etag(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def filters_of(listing: Listing[Any]) -> Any:
    """The query parameter `filter` of this list."""
    return Query(alias="filter", max_length=20, description=listing.describe_filters())


_COUNT = (
    f"Find the total as well: `exact` counts and examines up to {MAX_COUNTED:,} rows, `estimate` reads none and may be "
    "far off."
)


_OF_ANY_PAGE = frozenset({"filter", "sort", "limit", "cursor", "count", "include"})
"""Query parameters that do not change which list this is, or that a `PageQuery` has by itself."""

_CURSOR = "`next_cursor` of the previous page. It is good only for the same list, sort, filters and search."


def page_of(listing: Listing[Any]) -> Any:
    """The dependency that reads the requested page of this list: `page: Annotated[PageQuery, page_of(...)]`."""

    async def page_query(
        request: Request,
        filters: Annotated[list[str], filters_of(listing)] = [],  # noqa: B006  (FastAPI copies it)
        sort: Annotated[str | None, Query(max_length=64, description=listing.describe_sorts())] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=LONGEST, description=_CURSOR)] = None,
        count: Annotated[Count | None, Query(description=_COUNT)] = None,
    ) -> PageQuery:
        others = sorted(one for one in request.query_params.multi_items() if one[0] not in _OF_ANY_PAGE)
        return PageQuery(filters, sort, limit, cursor, count, f"{request.url.path}?{urlencode(others)}")

    return Depends(page_query)
