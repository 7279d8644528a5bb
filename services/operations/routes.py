"""HTTP for operators."""

from fastapi import APIRouter

from services.api.dependencies import Operator, PageParams, Work
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.transaction import TransactionRoute
from services.fields import Id
from services.operations import service
from services.operations.schemas import Backlog, Books, DeadLetterPublic
from services.outbox.control.service import By
from services.outbox.models import DeadLetter
from services.query import Page, Rows

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/books", responses=responses(401, 403))
async def read_books(_: Operator, uow: Work) -> Books:
    """Whether credits and stock are counted right. Recounts everything: not for a tight loop."""
    return await service.books(uow)


@router.get("/backlog", responses=responses(401, 403))
async def read_backlog(_: Operator, uow: Work) -> Backlog:
    """What waits in the outbox and what failed for good."""
    return await service.backlog(uow)


@router.get("/dead-letters", response_model=Page[DeadLetterPublic], responses=responses(400, 401, 403, 422))
async def list_dead_letters(_: Operator, page: PageParams, uow: Work) -> Rows[DeadLetter]:
    """Events whose attempts are used up, the oldest first."""
    return await uow.operations.dead_letters(filters=page.filters, sort=page.sort, limit=page.limit, cursor=page.cursor)


@router.post(
    "/dead-letters/{position}/replay",
    status_code=204,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422),
)
async def replay_dead_letter(position: Id, user: Operator, uow: Work) -> None:
    """Put a dead letter back into the outbox, at its old place and with its attempts at zero."""
    await service.replay(uow, position, By(f"user/{user.id}"))
