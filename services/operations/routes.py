"""HTTP routes for operators."""

from fastapi import APIRouter

from services.api.dependencies import Operator, ReplicaWork, Work
from services.api.problems import responses
from services.api.transaction import TransactionRoute
from services.operations import service
from services.operations.schemas import Backlog, Books

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/books", responses=responses(401, 403, 422))
async def read_books(_: Operator, uow: ReplicaWork) -> Books:
    """Check whether the books and the stock balance. Recounts everything; do not call it often."""
    return await service.books(uow)


@router.get("/backlog", responses=responses(401, 403))
async def read_backlog(_: Operator, uow: Work) -> Backlog:
    """Get the number of waiting events and dead letters, and of orders by status."""
    return await service.backlog(uow)
