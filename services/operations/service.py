"""What operators can look at and do."""

from services.errors import NotFound
from services.operations.schemas import Backlog, Books
from services.orders.models import OrderStatus
from services.outbox.control import service as control
from services.outbox.control.schemas import Selection
from services.outbox.control.service import By
from services.unit_of_work import UnitOfWork


async def books(uow: UnitOfWork) -> Books:
    """Recount the ledger and the stock from their tables."""
    counted = await uow.operations.books()
    return Books(balanced=all(value == 0 for value in counted.values()), **counted)


async def backlog(uow: UnitOfWork) -> Backlog:
    """What waits and what failed, and how many orders there are in each status."""
    by_status = await uow.operations.orders_by_status()
    counts = {status: by_status.get(status.value, 0) for status in OrderStatus}
    return Backlog(orders_by_status=counts, **await uow.operations.backlog())


async def replay(uow: UnitOfWork, position: int, by: By) -> None:
    """Put a dead letter back into the outbox. Raises `NotFound` where there is none at this position."""
    replayed = await control.replay(uow, Selection(position=position), by)
    if not replayed.done:
        raise NotFound(f"there is no dead letter {position}")
