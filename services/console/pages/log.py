"""The log of actions: who did what, when and why, and its export."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.dependencies import State, Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.audit.log.repository import AUDIT_LOG
from services.audit.log.routes import export_log
from services.console.pages.forms import moment
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


def _typed(
    actor: Typed = "", user: Typed = "", action: Typed = "", what: Typed = "", since: Typed = "", until: Typed = ""
) -> dict[str, str]:
    """What was typed into the fields of the page, by their names."""
    typed = {"actor": actor, "user": user, "action": action, "what": what, "since": since, "until": until}
    return {name: value.strip() for name, value in typed.items()}


Fields = Annotated[dict[str, str], Depends(_typed)]

_CONDITIONS = {
    "actor": "actor:eq",
    "user": "user_id:eq",
    "action": "action:eq",
    "what": "object:eq",
    "since": "at:gte",
    "until": "at:lt",
}
"""The condition of the list that a field stands for."""


def _filters(typed: Mapping[str, str]) -> list[str]:
    """The filters of the list; what is not a time is refused there."""
    return [
        f"{condition}:{_in_utc(typed[name]) if condition.startswith('at:') else typed[name]}"
        for name, condition in _CONDITIONS.items()
        if typed[name]
    ]


@router.get("/log")
@needs(Scope.audit_read)
async def show_log(request: Request, _: Staff, uow: Work, typed: Fields, cursor: Cursor = "") -> Response:
    """Who did what, newest first."""
    wanted = PageQuery(_filters(typed), cursor=cursor or None, scope="console log")
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
        "query": urlencode({name: value for name, value in typed.items() if value}),
    }
    return render(request, "log.html", values, status=200 if page is not None else 400)


@router.get("/log.csv", response_class=StreamingResponse)
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_as_csv(request: Request, _: Staff, uow: Work, state: State, typed: Fields) -> Response:
    """The same as CSV, oldest first. The export is itself recorded."""
    return await export_log(Format.csv, request, uow, state, _filters(typed))


@router.get("/log.ndjson", response_class=StreamingResponse)
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_as_lines(request: Request, _: Staff, uow: Work, state: State, typed: Fields) -> Response:
    """The same as one JSON object a line, oldest first. The export is itself recorded."""
    return await export_log(Format.ndjson, request, uow, state, _filters(typed))


def _in_utc(typed: str) -> str:
    at = moment(typed)
    return at if isinstance(at, str) else at.isoformat()
