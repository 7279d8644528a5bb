"""Failures: dead letters by kind of error, one kind with a sample, one letter, and what operators do about them."""

from enum import StrEnum
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Form, Query, Request, Response
from pydantic import Field

from services.api.dependencies import Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.pages.forms import FAILURE_REASONS, Reasoned, Text, by, check_reason, payload_text
from services.console.rendering import redirect, render
from services.console.route import page_router
from services.console.staff import Staff
from services.cursors import LONGEST
from services.errors import Fault, InvalidInput, NotFound
from services.fields import Id
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkKind
from services.outbox.bulk.repository import BULK_ACTIONS
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control import service as control
from services.outbox.control.schemas import Selection
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import GroupsWanted, Window
from services.outbox.models import FailureReason
from services.query import PageQuery
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Scope

router = page_router()

_GROUPS = 20
_LETTERS = 50
_MOST = 200
"""The most letters that a form may select."""


class Act(StrEnum):
    """What is done to dead letters."""

    replay = "replay"
    discard = "discard"


class LettersForm(Reasoned):
    """The selected letters of a group."""

    act: Act
    fingerprint: Text = ""
    positions: list[Id] = Field(default=[], max_length=_MOST)


class AllForm(Reasoned):
    """All letters of a group."""

    act: Act
    fingerprint: Text = ""


@router.get("/failures")
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def show_failures(
    request: Request,
    _: Staff,
    uow: Work,
    type: Annotated[Text, Query()] = "",  # noqa: A002  (the name of the parameter)
    reason: Annotated[str, Query(max_length=32)] = "",
    window: Annotated[Window, Query()] = Window.day,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
) -> Response:
    """Dead letters by kind of error, the kind that grew last first."""
    chosen = _reason(reason)
    wanted = GroupsWanted(type.strip() or None, chosen, window)
    running = await uow.bulk.list_page(BULK_ACTIONS, PageQuery(["state:in:waiting,running"], limit=5))
    values = {
        "page": await inspection.groups(uow, wanted, _GROUPS, cursor),
        "type": type.strip(),
        "reason": chosen,
        "window": window,
        "windows": list(Window),
        "reasons": FAILURE_REASONS,
        "running": running.data,
    }
    return render(request, "failures.html", values)


@router.get("/failures/group")
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def show_group(
    request: Request,
    staff: Staff,
    uow: Work,
    fingerprint: Annotated[Text, Query()] = "",
    window: Annotated[Window, Query()] = Window.day,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
    done: Annotated[Act | None, Query()] = None,
    number: Annotated[int, Query(ge=0, le=_MOST)] = 0,
) -> Response:
    """One kind of error: since when, how often, a sample, and its letters."""
    told = _told(done, number)
    try:
        group = await inspection.group(uow, fingerprint, window)
    except NotFound:
        # Its last letter may just have been replayed or discarded.
        return render(
            request, "group_gone.html", {"fingerprint": fingerprint, "told": told}, status=200 if told else 404
        )
    sample = await uow.control.dead_letter(group.position)
    wanted = PageQuery([f"fingerprint:eq:{fingerprint}"], limit=_LETTERS, cursor=cursor, scope="console")
    values = {
        "group": group,
        "sample": None if sample is None else sample[0],
        "payload": None if sample is None else payload_text(sample[1], staff),
        "letters": await uow.control.dead_letters(wanted),
        "last_line": control.last_line,
        "reasons": FAILURE_REASONS,
        "window": window,
        "windows": list(Window),
        "told": told,
    }
    return render(request, "group.html", values)


@router.get("/failures/letters/{position}")
@needs(Scope.operations_read)
async def show_letter(request: Request, staff: Staff, uow: Work, position: Id) -> Response:
    """One dead letter with its full error, its history and its payload."""
    found = await uow.control.dead_letter(position)
    if found is None:
        raise NotFound(f"there is no dead letter {position}: it was replayed or discarded, or never existed")
    letter, event = found
    values = {
        "letter": letter,
        "event": event,
        "payload": payload_text(event, staff),
        "reasons": FAILURE_REASONS,
    }
    return render(request, "letter.html", values)


@router.post("/failures/letters")
@needs(Scope.operations_write)
async def act_on_letters(request: Request, form: Annotated[LettersForm, Form()], staff: Staff, uow: Work) -> Response:
    """Replay or discard the selected letters."""
    if not form.positions:
        fault = Fault("select at least one dead letter", "#/positions")
        raise InvalidInput(fault.detail, [fault])
    done = await _act(uow, form.act, Selection(positions=sorted(set(form.positions))), staff, form.reason)
    query = {"fingerprint": form.fingerprint, "done": form.act.value, "number": done}
    return redirect(request, f"{ROOT}/failures/group?{urlencode(query)}")


@router.get("/failures/all")
@needs(Scope.operations_write)
@rate_class(RateClass.search)
async def preview_all(
    request: Request, _: Staff, uow: Work, act: Annotated[Act, Query()], fingerprint: Annotated[Text, Query()] = ""
) -> Response:
    """What would be done to all letters of a kind: about how many there are, and the first of them."""
    preview = await bulk.preview(uow, BulkKind(act.value), BulkFilter(fingerprint=fingerprint))
    return render(request, "all.html", {"preview": preview, "act": act, "fingerprint": fingerprint})


@router.post("/failures/all")
@needs(Scope.operations_write)
async def act_on_all(request: Request, form: Annotated[AllForm, Form()], staff: Staff, uow: Work) -> Response:
    """Have workers replay or discard all letters of a kind."""
    check_reason(form.reason, f"to {form.act.value} all dead letters of a kind")
    filter_ = BulkFilter(fingerprint=form.fingerprint)
    action = await bulk.start(uow, BulkKind(form.act.value), filter_, by(staff, form.reason))
    return redirect(request, f"{ROOT}/bulk/{action.id}")


async def _act(uow: UnitOfWork, act: Act, selection: Selection, staff: SignedIn, reason: str) -> int:
    """Do it, and return the number of letters: fewer than selected if someone else was faster."""
    if act is Act.discard:
        return (await control.discard(uow, selection, by(staff, reason), SUBSCRIPTIONS)).done
    return (await control.replay(uow, selection, by(staff, reason))).done


def _reason(given: str) -> FailureReason | None:
    """A form sends an empty text for any reason. Raises `InvalidInput`."""
    if not given:
        return None
    try:
        return FailureReason(given)
    except ValueError as error:
        raise InvalidInput(f"there is no failure reason {given!r}; known: {', '.join(FailureReason)}") from error


def _told(done: Act | None, number: int) -> str:
    if done is None:
        return ""
    letters = "1 dead letter" if number == 1 else f"{number} dead letters"
    if done is Act.discard:
        return f"{letters} discarded. What waited behind them continues."
    return f"{letters} replayed: back in the outbox, at their old positions."
