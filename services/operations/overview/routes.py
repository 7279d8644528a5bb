"""HTTP routes for the overview: what the console's first page shows, as JSON."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.dependencies import CurrentUser, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.history import service as history
from services.history.schemas import History, Period
from services.operations.overview import service
from services.operations.overview.schemas import Overview
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/overview", responses=responses(401, 403))
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def read_overview(_: CurrentUser, uow: Work) -> Overview:
    """Get how the service goes, at a glance, and what needs attention."""
    return await service.overview(uow)


@router.get("/history", responses=responses(401, 403, 422))
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def read_history(
    _: CurrentUser, uow: Work, period: Annotated[Period, Query(description="How far back.")] = Period.hour
) -> History:
    """Get what workers did and what waited, over the last minutes or hours, for charts."""
    return await history.read(uow, period)
