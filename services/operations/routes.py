"""HTTP routes for operators."""

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, ReplicaWork, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.operations import service
from services.operations.schemas import Backlog, Books
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/books", responses=responses(401, 403, 422))
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def read_books(_: CurrentUser, uow: ReplicaWork) -> Books:
    """Check whether the books and the stock balance. Recounts everything; do not call it often."""
    return await service.books(uow)


@router.get("/backlog", responses=responses(401, 403))
@needs(Scope.operations_read)
async def read_backlog(_: CurrentUser, uow: Work) -> Backlog:
    """Get the number of waiting events and dead letters, and of orders by status."""
    return await service.backlog(uow)
