"""HTTP routes for orders by day."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.dependencies import Operator, ReplicaWork
from services.api.problems import responses
from services.api.transaction import TransactionRoute
from services.orders.days import service
from services.orders.days.schemas import OrderDayPublic

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

Days = Annotated[int, Query(ge=1, le=366, description="How many days, today (UTC) included.")]


@router.get("/orders-by-day", responses=responses(401, 403, 422))
async def list_orders_by_day(_: Operator, uow: ReplicaWork, days: Days = 31) -> list[OrderDayPublic]:
    """List what happened to orders on each of the last days, the newest first; days without events are left out.

    Workers count the events within a second or two if they are busy, and within about 16 s otherwise.
    """
    return await service.newest(uow, days)
