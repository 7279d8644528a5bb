"""HTTP routes for the consumers of the event log."""

from typing import Annotated

from fastapi import APIRouter, Path

from services.api.dependencies import CurrentUser, Work
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.operations.consumers import service
from services.operations.consumers.schemas import ConsumerReset
from services.operations.outbox.schemas import Because, Short
from services.outbox.control.schemas import By
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

_ACT = responses(400, 401, 403, 404, 409, 422)
_ONCE = [IDEMPOTENCY_KEY_ACCEPTED]

Consumer = Annotated[Short, Path(description="A consumer of the event log, such as `orders-by-day`.")]


@router.get("/consumers", responses=responses(401, 403))
@needs(Scope.operations_read)
async def list_consumers(_: CurrentUser, uow: Work) -> list[Lag]:
    """List the consumers of the event log: how far behind each is, and who runs it. Counts stop at 10,000."""
    return await log.lags(uow)


@router.post("/consumers/{consumer}/pause", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def pause_consumer(consumer: Consumer, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Stop running a consumer in workers. A batch that is under way is rolled back."""
    await service.pause(uow, consumer, By.user(user.id, wanted.reason))


@router.post("/consumers/{consumer}/resume", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def resume_consumer(consumer: Consumer, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Run a consumer in workers again, immediately even if it waits after a failure."""
    await service.resume(uow, consumer, By.user(user.id, wanted.reason))


@router.post("/consumers/{consumer}/reset", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def reset_consumer(consumer: Consumer, wanted: ConsumerReset, user: CurrentUser, uow: Work) -> None:
    """Move a consumer to the beginning of the log, or past everything in it."""
    await service.reset(uow, consumer, wanted.to, By.user(user.id, wanted.reason))
