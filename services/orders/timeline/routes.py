"""HTTP routes for the history of an order."""

from uuid import UUID

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.orders.timeline import service
from services.orders.timeline.schemas import Timeline
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/orders/{order_id}/timeline", responses=responses(401, 403, 404, 422))
@needs(Scope.orders_read_all)
@rate_class(RateClass.search)
async def read_timeline(order_id: UUID, caller: CurrentUser, uow: Work) -> Timeline:
    """Get what happened to an order, oldest first: requests, moves, refunds, credits, stock, events and failures.

    Holds and entries need `credits:read_all` as well, movements of stock `catalog:read_all`, failures and what
    operators did to events `operations:read`. Payloads are not shown.
    """
    return await service.timeline(uow, order_id, caller.may)
