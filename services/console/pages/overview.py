"""The first page: how everything goes, live, with charts of the last minutes or hours."""

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event

from services.api.dependencies import Work
from services.api.rights import needs
from services.console.live import live_of
from services.console.rendering import fragment, render
from services.console.route import page_router
from services.console.staff import Staff
from services.history import service as history
from services.history.schemas import Period
from services.operations.overview.schemas import Overview
from services.users.rights import Scope

router = page_router()

PERIODS = {
    Period.minutes_5: "5 minutes",
    Period.minutes_15: "15 minutes",
    Period.hour: "1 hour",
    Period.hours_6: "6 hours",
    Period.day: "24 hours",
}

ChosenPeriod = Annotated[Period, Query()]


@router.get("/overview")
@needs(Scope.operations_read)
async def show_overview(request: Request, _: Staff, uow: Work, period: ChosenPeriod = Period.minutes_15) -> Response:
    """How everything goes, and what needs attention."""
    # It gives its connection back: all who look share one reader.
    await uow.rollback()
    values = {"overview": await live_of(request).overview(), "period": period.value, "periods": PERIODS}
    return render(request, "overview.html", values)


@router.get("/overview/history")
@needs(Scope.operations_read)
async def read_history(_: Staff, uow: Work, period: ChosenPeriod = Period.minutes_15) -> Response:
    """The series of the charts."""
    return JSONResponse((await history.read(uow, period)).model_dump(mode="json"))


@router.get("/overview/live")
@needs(Scope.operations_read)
async def stream_overview(request: Request, _: Staff) -> Response:
    """The numbers of the page, every few seconds."""
    live = live_of(request)
    live.check_room()

    def show(found: Overview | None) -> bytes:
        return format_sse_event(data_str=fragment(request, "overview_numbers.html", {"overview": found}))

    request.state.is_stream = True
    # Proxies such as nginx would wait for more before they pass it on.
    return EventSourceResponse(live.messages(show), headers={"X-Accel-Buffering": "no"})
