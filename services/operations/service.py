"""What operators can look at."""

from services.operations.schemas import Backlog, Books
from services.unit_of_work import UnitOfWork


async def books(uow: UnitOfWork) -> Books:
    """Recount the ledger and the stock from their tables."""
    counted = await uow.audits.books()
    return Books(balanced=all(value == 0 for value in counted.values()), **counted)


async def backlog(uow: UnitOfWork) -> Backlog:
    """The number of waiting events and dead letters, and of orders in each status."""
    counts, precision = await uow.orders.number_by_status()
    return Backlog(orders_by_status=counts, orders_precision=precision, **await uow.control.backlog())
