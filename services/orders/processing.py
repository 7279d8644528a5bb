"""What a worker does with orders that were placed: reserve stock, post or void the holds, confirm or reject."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from services.orders.events import OrderConfirmed, OrderPlaced, OrderRejected
from services.orders.models import OrderStatus
from services.orders.repository import LockedOrder, Move
from services.outbox.events import Claimed
from services.unit_of_work import UnitOfWork

OUT_OF_STOCK = "out of stock"


async def process_placed(uow: UnitOfWork, events: Sequence[Claimed[OrderPlaced]]) -> None:
    """Confirm the batch's orders in the order they were placed, as far as the stock goes; reject the others.

    Set-based: the number of statements does not grow with the batch. An order that is no longer pending (cancelled
    meanwhile) is left as it is: a late event never moves an order back.
    """
    placed = [claimed.event.order_id for claimed in events]
    orders = await uow.orders.lock(placed)
    pending = [orders[order_id] for order_id in placed if orders[order_id].status is OrderStatus.pending]
    traces = {claimed.event.order_id: claimed.trace for claimed in events}
    if not pending:
        return
    ids = [order.id for order in pending]
    pieces = await uow.orders.pieces(ids)
    available = await uow.inventory.lock(sorted({product_id for lines in pieces.values() for product_id in lines}))
    confirmed, reserved = _allocate(pending, pieces, available)

    if reserved:
        await uow.inventory.reserve(reserved)
    holds = await uow.ledger.pending_of(ids)
    await uow.ledger.resolve_holds(
        post=[hold for hold in holds if hold.order_id in confirmed],
        void=[hold for hold in holds if hold.order_id not in confirmed],
    )
    await uow.orders.move(
        [
            Move(order.id, order.status, OrderStatus.confirmed)
            if order.id in confirmed
            else Move(order.id, order.status, OrderStatus.rejected, OUT_OF_STOCK)
            for order in pending
        ]
    )
    for order in pending:
        if order.id in confirmed:
            uow.record(OrderConfirmed(order_id=order.id, total=order.total), traces[order.id])
        else:
            uow.record(OrderRejected(order_id=order.id, reason=OUT_OF_STOCK), traces[order.id])


def _allocate(
    orders: Sequence[LockedOrder], pieces: Mapping[UUID, Mapping[int, int]], available: dict[int, int]
) -> tuple[set[UUID], dict[int, int]]:
    """First come, first served: the orders that the stock covers whole, and the pieces they take of each product."""
    confirmed: set[UUID] = set()
    reserved: dict[int, int] = {}
    for order in orders:
        lines = pieces[order.id]
        if all(available[product_id] >= wanted for product_id, wanted in lines.items()):
            confirmed.add(order.id)
            for product_id, wanted in lines.items():
                available[product_id] -= wanted
                reserved[product_id] = reserved.get(product_id, 0) + wanted
    return confirmed, reserved
