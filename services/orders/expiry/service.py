"""Cancels overdue orders: those that were not paid in time, and those whose holds were not posted in time."""

from collections.abc import Sequence

from services.orders.events import OrderCancelled
from services.orders.expiry.repository import HeldOrder, UnpaidOrder
from services.orders.models import EXPIRED, OrderStatus
from services.orders.repository import Move
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork


async def expire(uow: UnitOfWork, due: Sequence[UnpaidOrder | HeldOrder]) -> list[str]:
    """Cancel those of the orders that are overdue, and release their credits; returns the ids of the cancelled orders.

    Orders that are locked, or whose buyer's account is locked, are skipped: the transaction that holds the lock
    resolves them, or the next sweep finds them. A pending order has no reserved stock that would have to be released.
    """
    found = await uow.order_expiry.lock([one.order_id for one in due])
    pending = [one.order.id for one in found if one.order.status is OrderStatus.pending]
    holds = await uow.holds.lock_of_orders(pending) if pending else []
    overdue = {hold.order_id for hold in holds if hold.is_due}
    orders = [one.order for one in found if one.is_due or one.order.id in overdue]
    await uow.ledger.resolve_holds(expire=[hold.id for hold in holds if hold.order_id in overdue])
    if orders:
        await uow.orders.move([Move(order.id, order.status, OrderStatus.cancelled, EXPIRED) for order in orders])
    for order in orders:
        uow.record(OrderCancelled(order_id=order.id, from_status=order.status.value, reason=EXPIRED))
    return [str(order.id) for order in orders]


UNPAID: Sweep[UnpaidOrder] = Sweep(
    "unpaid_orders", lambda uow, after, limit: uow.order_expiry.unpaid(after, limit), expire
)
"""Orders that were not paid in time."""

HELD: Sweep[HeldOrder] = Sweep("held_orders", lambda uow, after, limit: uow.order_expiry.held(after, limit), expire)
"""Pending orders with an overdue hold."""
