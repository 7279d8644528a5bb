"""The events that wait: how many of each type and why, one by one, and what operators do about them."""

from enum import StrEnum
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field

from services.api.dependencies import Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.pages.forms import Reasoned, Text, by, check_reason
from services.console.rendering import PROTECTION, fragment, redirect, render
from services.console.route import page_router
from services.console.staff import Staff
from services.cursors import LONGEST
from services.errors import InvalidInput, NotFound
from services.fields import Id
from services.operations.outbox.schemas import Short
from services.outbox.control import service as control
from services.outbox.control import why
from services.outbox.control.why import Why
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import WaitsFor
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.rights import Scope

router = page_router()

_PAGE = 50
_LATER = frozenset({WaitsFor.retry, WaitsFor.unknown, WaitsFor.deferred, WaitsFor.begun, WaitsFor.behind})
"""What an operator can have tried now or bury: what is ready is about to be tried."""


class Done(StrEnum):
    """What the form before has done, as the page says it."""

    paused = "Paused. Running batches finish; no further events of this type are claimed."
    resumed = "Resumed. Workers claim events of this type again."
    limited = "The limit is set. It applies from the next batch on."
    retried = "The event is due now."
    buried = "The event is a dead letter now. Later events of its aggregate wait for its replay or discard."


Said = Annotated[str | None, Query(max_length=20)]


class TypeForm(Reasoned):
    """What is done to a type."""

    type: Short


class LimitForm(TypeForm):
    """How many batches of a type may run at the same time; empty for no limit."""

    max_batches: Annotated[str, Field(pattern=r"^\s*\d{0,4}\s*$")] = ""


class EventForm(Reasoned):
    """What is done to an event, and the page from which the form was sent."""

    position: Id
    q: Text = ""
    type: Text = ""
    waits: Text = ""


@router.get("/events")
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def show_events(
    request: Request,
    _: Staff,
    uow: Work,
    q: Annotated[Text, Query()] = "",
    type: Annotated[Text, Query()] = "",  # noqa: A002  (the name of the parameter)
    waits: Annotated[WaitsFor | None, Query()] = None,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
    done: Said = None,
) -> Response:
    """How many events of each type wait, and why; the events that wait for one reason; a search."""
    found, missing = await _searched(uow, q.strip())
    page = None
    if type and waits is not None:
        page = await inspection.waiting(uow, type, waits, _PAGE, cursor)
    values = {
        "types": await control.types(uow),
        "q": q.strip(),
        "found": found,
        "missing": missing,
        "type": type,
        "waits": waits,
        "page": page,
        "later": _LATER,
        "done": _said(done),
    }
    return render(request, "events.html", values)


@router.get("/events/why")
@needs(Scope.operations_read)
async def show_why(request: Request, _: Staff, uow: Work, position: Id) -> Response:
    """Why an event waits, as a part of the page."""
    try:
        found: Why | None = await why.of_position(uow, position)
        missing = ""
    except NotFound as error:
        # It has been processed since the page was shown.
        found, missing = None, error.detail
    values = {"one": found, "missing": missing}
    return HTMLResponse(fragment(request, "why.html", values), headers=PROTECTION)


@router.post("/events/pause")
@needs(Scope.operations_write)
async def pause(request: Request, form: Annotated[TypeForm, Form()], staff: Staff, uow: Work) -> Response:
    """Stop claiming events of a type."""
    await control.pause(uow, form.type, by(staff, form.reason))
    return _back(request, Done.paused)


@router.post("/events/resume")
@needs(Scope.operations_write)
async def resume(request: Request, form: Annotated[TypeForm, Form()], staff: Staff, uow: Work) -> Response:
    """Claim events of a type again."""
    await control.pause(uow, form.type, by(staff, form.reason), paused=False)
    return _back(request, Done.resumed)


@router.post("/events/limit")
@needs(Scope.operations_write)
async def limit(request: Request, form: Annotated[LimitForm, Form()], staff: Staff, uow: Work) -> Response:
    """Limit how many batches of a type run at the same time."""
    given = form.max_batches.strip()
    most = int(given) if given else None
    if most is not None and not 1 <= most <= 1000:
        raise InvalidInput("max_batches must be between 1 and 1000, or empty for no limit")
    await control.limit(uow, form.type, most, by(staff, form.reason))
    return _back(request, Done.limited)


@router.post("/events/retry")
@needs(Scope.operations_write)
async def retry_now(request: Request, form: Annotated[EventForm, Form()], staff: Staff, uow: Work) -> Response:
    """Make an event due now."""
    await control.retry_now(uow, form.position, by(staff, form.reason))
    return _back(request, Done.retried, q=form.q, type=form.type, waits=form.waits)


@router.post("/events/bury")
@needs(Scope.operations_write)
async def bury(request: Request, form: Annotated[EventForm, Form()], staff: Staff, uow: Work) -> Response:
    """Turn an event into a dead letter."""
    check_reason(form.reason, "to bury an event")
    await control.bury_waiting(uow, form.position, by(staff, form.reason))
    return _back(request, Done.buried, q=form.q, type=form.type, waits=form.waits)


async def _searched(uow: UnitOfWork, q: str) -> tuple[list[Why], str]:
    """What waits under this id, position or aggregate, and otherwise why there is nothing."""
    if not q:
        return [], ""
    try:
        return await why.of_any(uow, q, SUBSCRIPTIONS), ""
    except NotFound as error:
        return [], error.detail


def _said(done: str | None) -> str:
    return Done[done].value if done is not None and done in Done.__members__ else ""


def _back(request: Request, done: Done, **query: str) -> RedirectResponse:
    given = {name: value for name, value in query.items() if value}
    return redirect(request, f"{ROOT}/events?{urlencode({**given, 'done': done.name})}")
