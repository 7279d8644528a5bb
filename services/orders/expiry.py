"""Orders that nothing came of in time are cancelled: unpaid ones, and those whose holds no worker posted."""

from services.orders.events import OrderCancelled
from services.orders.models import OrderStatus
from services.orders.processing import EXPIRED
from services.orders.repository import Move
from services.unit_of_work import UnitOfWork


async def expire_due(uow: UnitOfWork, limit: int) -> int:
    """Cancel up to `limit` orders whose time is over, and free their credits; how many it looked at.

    Orders that somebody works on at this moment are left out: they are resolved there, or found the next time. A
    pending order has no stock reserved, so that none is given back.
    """
    due = await uow.order_expiry.lock_due(limit)
    found = await uow.ledger.lock_holds([one.order.id for one in due if one.order.status is OrderStatus.pending])
    overdue = {hold.order_id for hold in found.holds if hold.is_due}
    orders = [one.order for one in due if one.is_due or one.order.id in overdue]
    await uow.ledger.resolve_holds(expire=[hold.id for hold in found.holds if hold.order_id in overdue])
    if orders:
        await uow.orders.move([Move(order.id, order.status, OrderStatus.cancelled, EXPIRED) for order in orders])
    for order in orders:
        uow.record(OrderCancelled(order_id=order.id, from_status=order.status.value, reason=EXPIRED))
    return len(due)
