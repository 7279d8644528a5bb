"""The progress of a bulk action, and how to cancel it."""

from typing import Annotated
from uuid import UUID

from fastapi import Form, Request, Response
from fastapi.responses import HTMLResponse

from services.api.dependencies import Work
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.pages.forms import Reasoned, by
from services.console.rendering import PROTECTION, fragment, redirect, render
from services.console.route import page_router
from services.console.staff import Staff
from services.outbox.bulk import service as bulk
from services.users.rights import Scope

router = page_router()


@router.get("/bulk/{action_id}")
@needs(Scope.operations_read)
async def show_bulk(request: Request, _: Staff, uow: Work, action_id: UUID) -> Response:
    """What is being done to which events, and how far it has come."""
    return render(request, "bulk.html", {"action": await bulk.get(uow, action_id)})


@router.get("/bulk/{action_id}/progress")
@needs(Scope.operations_read)
async def show_progress(request: Request, _: Staff, uow: Work, action_id: UUID) -> Response:
    """How far it has come, as a part of the page that asks for it again until the action has ended."""
    action = await bulk.get(uow, action_id)
    text = fragment(request, "bulk_progress.html", {"action": action})
    # Once it has ended, the whole page is loaded again: there is nothing to cancel any more.
    ended = {} if action.state.is_active else {"HX-Refresh": "true"}
    return HTMLResponse(text, headers={**PROTECTION, **ended})


@router.post("/bulk/{action_id}/cancel")
@needs(Scope.operations_write)
async def cancel_bulk(
    request: Request, action_id: UUID, form: Annotated[Reasoned, Form()], staff: Staff, uow: Work
) -> Response:
    """End the action where it is."""
    await bulk.cancel(uow, action_id, by(staff, form.reason))
    return redirect(request, f"{ROOT}/bulk/{action_id}")
