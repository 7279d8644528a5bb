"""Consumers of the event log: how far behind each is, and the reports that one of them counts."""

from typing import Annotated, Any

from fastapi import Form, Request, Response
from pydantic import Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.analytics import HOW_TO_TURN_ON
from services.api.dependencies import State, Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.state import ApiState
from services.api.transaction import ahead
from services.console.navigation import ROOT
from services.console.pages.forms import Reasoned, by
from services.console.rendering import redirect, render
from services.console.route import page_router
from services.console.staff import Staff
from services.errors import ReportsOff, ReportsUnavailable
from services.operations.consumers import service
from services.operations.outbox.schemas import Short
from services.outbox.log import service as log
from services.outbox.log.schemas import Extent, Lag, Start
from services.reports import service as reports
from services.reports.routes import reading
from services.unit_of_work import background
from services.users.rights import Scope

router = page_router()

CONSUMERS = f"{ROOT}/consumers"

COUNTED = 10_000
"""The most unread events that are counted for each consumer."""


class ResetForm(Reasoned):
    """Where the consumer continues. Its name is typed again, since it cannot be undone."""

    to: Start
    confirmation: str = Field(default="", max_length=100)


@router.get("/consumers")
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def show_consumers(request: Request, _: Staff, uow: Work, state: State) -> Response:
    """Each consumer with its lag, state and error, and how far the reports have been counted."""
    return await _shown(request, uow, state)


@router.post("/consumers/{name}/pause")
@needs(Scope.operations_write)
async def pause_here(
    name: Short, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Stop running a consumer in workers."""
    await service.pause(uow, name, by(staff, form.reason))
    return redirect(request, CONSUMERS)


@router.post("/consumers/{name}/resume")
@needs(Scope.operations_write)
async def resume_here(
    name: Short, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Run a consumer in workers again."""
    await service.resume(uow, name, by(staff, form.reason))
    return redirect(request, CONSUMERS)


@router.post("/consumers/{name}/reset")
@needs(Scope.operations_write)
async def reset_here(
    name: Short, form: Annotated[ResetForm, Form()], request: Request, staff: Staff, uow: Work, state: State
) -> Response:
    """Move a consumer to the beginning of the log or to now, if its name was typed again."""
    if form.confirmation.strip() != name:
        return await _shown(request, uow, state, f"Nothing was changed: to reset {name}, type its name.", 422)
    await service.reset(uow, name, form.to, by(staff, form.reason))
    return redirect(request, CONSUMERS)


@router.post("/consumers/reports/rebuild")
@needs(Scope.operations_write)
async def rebuild_here(
    form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work, state: State
) -> Response:
    """Have workers count all events of the log again, as `waybill reports rebuild` does."""
    if state.analytics is None:
        raise ReportsOff(f"reports are off on this server; to turn them on, {HOW_TO_TURN_ON}")
    await uow.rollback()
    async with reading(state.analytics):
        # Before anything is changed: it can be reached, and has its tables.
        pass
    # In this order, each committed: from the first on, the log keeps all that it holds, and no worker counts.
    async with ahead(request) as restarting:
        series, lease, extent = await service.restart(restarting, reports.CONSUMER, by(staff, form.reason))
    try:
        async with background(state.analytics.open) as work:
            await reports.start_over(work, series, extent.oldest)
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise ReportsUnavailable(
            "the analytics database did not answer when the rebuild began; start it again"
        ) from error
    async with ahead(request) as releasing:
        await releasing.log.release(reports.CONSUMER, lease)
    return redirect(request, CONSUMERS)


async def _shown(request: Request, uow: Work, state: ApiState, message: str = "", status: int = 200) -> Response:
    lags = await log.lags(uow, COUNTED)
    extent = await uow.log.extent()
    progress: Any = None
    unavailable = ""
    if state.analytics is not None:
        # Its connection goes back to the pool: the other database may be slow.
        await uow.rollback()
        try:
            async with reading(state.analytics) as work:
                progress = await work.reports.progress(reports.CONSUMER)
        except ReportsUnavailable as error:
            unavailable = error.detail
    values = {
        "consumers": lags,
        "counted": COUNTED,
        "read": {one.name: _share_read(one, extent) for one in lags},
        "are_reports_on": state.analytics is not None,
        "progress": progress,
        "unavailable": unavailable,
        "reports": reports.CONSUMER,
        "message": message,
    }
    return render(request, "consumers.html", values, status=status)


def _share_read(one: Lag, extent: Extent) -> int | None:
    """How much of the log a consumer that reads it from its beginning has read, in percent; None if it is not known."""
    if one.until is None or extent.first is None or one.until < extent.first:
        return None
    share = (one.position - extent.first + 1) / (one.until - extent.first + 1)
    return round(100 * min(1.0, max(0.0, share)))
