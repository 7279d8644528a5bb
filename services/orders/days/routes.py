"""HTTP routes for orders by day."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.dependencies import CurrentUser, ReplicaWork
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.orders.days import service
from services.orders.days.schemas import OrderDayPublic
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

Days = Annotated[int, Query(ge=1, le=366, description="How many days, today (UTC) included.")]


@router.get("/orders-by-day", responses=responses(401, 403, 422))
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def list_orders_by_day(_: CurrentUser, uow: ReplicaWork, days: Days = 31) -> list[OrderDayPublic]:
    """List what happened to orders on each of the last days, the newest first; days without events are left out.

    Workers count the events within a second or two if they are busy, and within about 16 s otherwise.
    """
    return await service.newest(uow, days)
