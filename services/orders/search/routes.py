"""HTTP route to search orders."""

from fastapi import APIRouter

from services.api.bodies import KIB, body_limit
from services.api.dependencies import CurrentUser, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.orders.schemas import OrderSummary
from services.orders.search import service
from services.orders.search.schemas import OrderSearch
from services.query import Page
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.post("/orders/search", responses=responses(400, 401, 403, 413, 422))
@needs(Scope.orders_read_all)
@rate_class(RateClass.search)
@body_limit(32 * KIB)
async def search_orders(wanted: OrderSearch, caller: CurrentUser, uow: Work) -> Page[OrderSummary]:
    """Search anyone's orders, newest first: by id, buyer, reference, status and time of placing.

    It is a POST so that what is searched for is in no log of addresses. `buyer_email` needs `users:read` as well.
    """
    return await service.search(uow, caller, wanted)
