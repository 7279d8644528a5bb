"""The scheduled end of what nobody finished in time: holds, and orders that await payment or a worker."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from services.credits import holds
from services.orders import expiry as orders
from services.unit_of_work import UnitOfWork
from worker.context import WorkerContext

logger = structlog.get_logger(__name__)

_A_TRANSACTION = 200


async def expire(ctx: dict[str, Any]) -> None:
    """Cancel orders and let holds expire whose time is over, a slice a transaction.

    What is locked by somebody else is passed over, for the next minute's run to look at.
    """
    worker: WorkerContext = ctx["worker"]
    ended = {
        "orders": await _in_slices(worker, orders.expire_due),
        "holds": await _in_slices(worker, holds.expire_due),
    }
    if any(ended.values()):
        logger.info("expired", **ended)


async def _in_slices(worker: WorkerContext, expire_due: Callable[[UnitOfWork, int], Awaitable[int]]) -> int:
    total, found = 0, _A_TRANSACTION
    while found == _A_TRANSACTION:
        async with worker.open_unit_of_work() as uow:
            found = await expire_due(uow, _A_TRANSACTION)
            await uow.commit()
        total += found
    return total
