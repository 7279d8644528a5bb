"""Credits: what waits for approval, the last audit, and an account with its statement, holds and transfers."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Form, Query, Request, Response
from pydantic import Field

from services.api.dependencies import State, Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.rendering import redirect, render
from services.console.route import PageForm, page_router
from services.console.staff import Staff
from services.credits.approval.rules import Limits
from services.credits.corrections import service as corrections
from services.credits.corrections.repository import ADJUSTMENTS
from services.credits.ledger import service as ledger
from services.credits.models import NOTED
from services.credits.schemas import Party
from services.cursors import LONGEST
from services.fields import Id, typed_id
from services.query import PageQuery
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Scope

router = page_router()

PENDING = PageQuery(("state:eq:pending",), "id", limit=50)
"""Those that wait longest first."""

LINES = 50
"""Entries on a page of a statement."""

RECENT = 20
"""How many holds and transfers of each side are shown of an account."""

CREDITS = f"{ROOT}/credits"


class FindAccount(PageForm):
    """Whose account: a user's id or e-mail address."""

    user: str = Field(default="", max_length=300)


@router.get("/credits")
@needs(Scope.credits_read_all)
async def show_credits(request: Request, staff: Staff, uow: Work) -> Response:
    """What waits for approval, the last audit, and the way to an account; each for those who may see it."""
    return render(request, "credits.html", await _overview(uow, staff))


@router.post("/credits")
@needs(Scope.credits_read_all)
@rate_class(RateClass.search)
async def find_account(form: Annotated[FindAccount, Form()], request: Request, staff: Staff, uow: Work) -> Response:
    """Go to a user's account. An address is sent in the body, and so in no log."""
    typed = form.user.strip().replace("\x00", "")
    user_id = typed_id(typed)
    if user_id is None and staff.may(Scope.users_read):
        user = await uow.users.by_email(typed.encode("utf-8", "replace").decode())
        user_id = None if user is None else user.id
    if user_id is None or await uow.ledger.account_of(user_id) is None:
        values = {**await _overview(uow, staff), "typed": form.user, "message": "No user has this id or address."}
        return render(request, "credits.html", values, status=404)
    return redirect(request, f"{CREDITS}/accounts/{user_id}")


@router.get("/credits/accounts/{user_id}")
@needs(Scope.credits_read_all)
@rate_class(RateClass.search)
async def show_account(
    user_id: Id,
    request: Request,
    _: Staff,
    uow: Work,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
) -> Response:
    """A user's account: its balance, a page of its statement, and its newest holds and transfers."""
    account = await ledger.account_with_user(uow, user_id)
    assert account.user is not None, "it was found by its user"
    newest = PageQuery(limit=RECENT)
    lines = PageQuery(limit=LINES, cursor=cursor, scope=f"account {user_id}")
    moved = {
        f"{name} {party.value}": await uow.transfers.page(user_id, party, newest, holds=name == "holds")
        for name in ("holds", "transfers")
        for party in Party
    }
    values = {
        "account": account,
        "user_id": user_id,
        "full_name": account.user.full_name,
        "statement": await uow.statements.page(user_id, lines),
        "is_first": cursor is None,
        "moved": moved,
        "recent": RECENT,
        "noted": NOTED,
    }
    return render(request, "account.html", values)


@router.post("/credits/adjustments/{adjustment_id}/approve")
@needs(Scope.corrections_write)
async def approve_here(
    _form: Annotated[PageForm, Form()], adjustment_id: UUID, request: Request, staff: Staff, uow: Work, state: State
) -> Response:
    """Apply what another operator asked for."""
    await corrections.approve(uow, staff, adjustment_id, Limits.of(state.settings))
    return redirect(request, CREDITS)


@router.post("/credits/adjustments/{adjustment_id}/reject")
@needs(Scope.corrections_write)
async def reject_here(
    _form: Annotated[PageForm, Form()], adjustment_id: UUID, request: Request, staff: Staff, uow: Work
) -> Response:
    """Refuse what another operator asked for."""
    await corrections.reject(uow, staff, adjustment_id)
    return redirect(request, CREDITS)


async def _overview(uow: UnitOfWork, staff: SignedIn) -> dict[str, Any]:
    pending = audit = None
    if staff.may(Scope.corrections_read):
        pending = await uow.adjustments.list_page(ADJUSTMENTS, PENDING)
    if staff.may(Scope.audit_read):
        audit = await uow.audits.latest()
    return {"pending": pending, "audit": audit, "typed": "", "message": ""}
