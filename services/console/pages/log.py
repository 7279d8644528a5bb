"""The log of actions: who did what, when and why, and its export."""

from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.dependencies import State, Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.audit.log.repository import AUDIT_LOG
from services.audit.log.routes import export_log
from services.console.rendering import render
from services.console.route import page_router
from services.console.staff import Staff
from services.cursors import LONGEST
from services.errors import BadQuery
from services.exports import Format
from services.query import PageQuery
from services.users.rights import Scope

router = page_router()

Typed = Annotated[str, Query(max_length=200)]
Cursor = Annotated[str, Query(max_length=LONGEST)]


def _filters(actor: str, user: str, action: str, what: str, since: str, until: str) -> dict[str, str]:
    """The filters of the list, by the name of the field in which they were typed."""
    written = {
        "actor": f"actor:eq:{actor.strip()}" if actor.strip() else "",
        "user": f"user_id:eq:{user.strip()}" if user.strip() else "",
        "action": f"action:eq:{action}" if action else "",
        "what": f"object:eq:{what.strip()}" if what.strip() else "",
        "since": f"at:gte:{_utc(since)}" if since.strip() else "",
        "until": f"at:lt:{_utc(until)}" if until.strip() else "",
    }
    return {name: one for name, one in written.items() if one}


@router.get("/log")
@needs(Scope.audit_read)
async def show_log(
    request: Request,
    _: Staff,
    uow: Work,
    actor: Typed = "",
    user: Typed = "",
    action: Typed = "",
    what: Typed = "",
    since: Typed = "",
    until: Typed = "",
    cursor: Cursor = "",
) -> Response:
    """Who did what, newest first."""
    typed = {"actor": actor, "user": user, "action": action, "what": what, "since": since, "until": until}
    filters = _filters(**typed)
    wanted = PageQuery(list(filters.values()), cursor=cursor or None, scope="console log")
    page, message = None, ""
    try:
        page = await uow.audit_log.list_page(AUDIT_LOG, wanted)
    except BadQuery as error:
        message = error.detail
    values = {
        "typed": typed,
        "actions": list(Action),
        "page": page,
        "message": message,
        "is_first": not cursor,
        "query": urlencode({name: value for name, value in typed.items() if value.strip()}),
    }
    return render(request, "log.html", values, status=200 if page is not None else 400)


@router.get("/log.csv", response_class=StreamingResponse)
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_as_csv(
    request: Request,
    _: Staff,
    uow: Work,
    state: State,
    actor: Typed = "",
    user: Typed = "",
    action: Typed = "",
    what: Typed = "",
    since: Typed = "",
    until: Typed = "",
) -> Response:
    """The same as CSV, oldest first. The export is itself recorded."""
    filters = _filters(actor, user, action, what, since, until)
    return await export_log(Format.csv, request, uow, state, list(filters.values()))


@router.get("/log.ndjson", response_class=StreamingResponse)
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_as_lines(
    request: Request,
    _: Staff,
    uow: Work,
    state: State,
    actor: Typed = "",
    user: Typed = "",
    action: Typed = "",
    what: Typed = "",
    since: Typed = "",
    until: Typed = "",
) -> Response:
    """The same as one JSON object a line, oldest first. The export is itself recorded."""
    filters = _filters(actor, user, action, what, since, until)
    return await export_log(Format.ndjson, request, uow, state, list(filters.values()))


def _utc(typed: str) -> str:
    """The time that a browser's field has, as a filter takes it; what is not a time is refused there."""
    try:
        at = datetime.fromisoformat(typed.strip())
    except ValueError:
        return typed.strip()
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()
