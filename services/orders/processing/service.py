"""How workers process placed orders: reserve stock, resolve the holds, and confirm, reject or cancel."""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from services.credits.ledger.repository import LockedHolds
from services.credits.ledger.service import moving
from services.orders.events import OrderCancelled, OrderConfirmed, OrderPlaced, OrderRejected
from services.orders.models import DISCARDED, EXPIRED, OUT_OF_STOCK, SELLER_CLOSED, OrderStatus
from services.orders.processing.repository import Placed
from services.orders.repository import LockedOrder, Move
from services.outbox.events import Claimed, Locked, Trace
from services.outbox.subscription import Discarded, Verdicts
from services.unit_of_work import UnitOfWork

_LOCKED = Locked("another transaction has locked the order, the stock of a product or an account")


async def process_placed(uow: UnitOfWork, events: Sequence[Claimed[OrderPlaced]]) -> Verdicts:
    """Confirm the batch's orders in the order they were placed, as far as the stock suffices; reject the others.

    Holds are never posted after they are due to expire, even if no sweep has run: such an order is cancelled here. An
    order that pays a closed account is rejected. An order that is no longer pending (cancelled meanwhile) is left as
    it is: a late event never moves an order back. If the engine asks not to wait, orders that need a locked row are
    left for later. Set-based: the number of statements does not grow with the batch.
    """
    placed = list(dict.fromkeys(claimed.event.order_id for claimed in events))
    # The accounts are locked last, so that nothing waits between reading the clock and posting. If an order is still
    # pending once it is locked, its holds are as they were when the statement began: nothing else changes them.
    wait = not uow.leaves_out_locked
    found, locked = await uow.read(
        uow.order_processing.locking(placed, wait=wait), uow.ledger.locking_holds(placed, wait=wait)
    )
    busy = set() if wait else _busy(placed, found, locked)
    free = [found.orders[order_id] for order_id in placed if order_id not in busy]
    pending = [order for order in free if order.status is OrderStatus.pending]
    if pending:
        _settle(uow, pending, found, locked, {claimed.event.order_id: claimed.trace for claimed in events})
    return [_LOCKED if claimed.event.order_id in busy else None for claimed in events] if busy else None


async def cancel_discarded(uow: UnitOfWork, discarded: Sequence[Discarded]) -> None:
    """Cancel the orders that no worker will process any more, and release the credits that are held for them.

    Orders that are no longer pending are left as they are. Who discarded the events, and why, is in `outbox_actions`.
    """
    ids = sorted({order_id for one in discarded if (order_id := _order_id(one.aggregate)) is not None})
    locked = (await uow.orders.lock(ids)).values()
    pending = [order for order in locked if order.status is OrderStatus.pending]
    if not pending:
        return
    found = await uow.ledger.lock_holds([order.id for order in pending])
    async with moving(uow, sum((order.total for order in pending), Decimal(0))):
        await uow.ledger.resolve_holds(void=[hold.id for hold in found.holds])
    await uow.orders.move([Move(order.id, order.status, OrderStatus.cancelled, DISCARDED) for order in pending])
    for order in pending:
        uow.record(OrderCancelled(order_id=order.id, from_status=order.status.value, reason=DISCARDED))


async def explain_status(uow: UnitOfWork, what: str) -> str | None:
    """What will happen to an order without a waiting event; None if there is no such order.

    `what` is `order/ID` or an id.
    """
    order_id = _order_id(what)
    order = None if order_id is None else await uow.orders.get(order_id)
    if order is None:
        return None
    match order.status:
        case OrderStatus.awaiting_payment:
            return f"order {order.id} awaits payment until {order.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        case OrderStatus.pending:
            until = await uow.order_processing.held_until(order.id)
            expiry = "" if until is None else f"its hold expires at {until:%Y-%m-%d %H:%M:%S} UTC or "
            return f"order {order.id} is pending, but has no event left; it stays pending until {expiry}you cancel it"
        case _:
            return f"order {order.id} is {order.status.value}"


def _order_id(aggregate: str) -> UUID | None:
    try:
        return UUID(aggregate.removeprefix("order/"))
    except ValueError:
        return None


def _busy(placed: Sequence[UUID], found: Placed, locked: LockedHolds) -> set[UUID]:
    """The orders whose row, stock or accounts another transaction has locked."""
    missing = {order_id for order_id in placed if order_id not in found.orders}
    out_of_reach = {order_id for order_id, lines in found.pieces.items() if not lines.keys() <= found.available.keys()}
    return missing | out_of_reach | {hold.order_id for hold in locked.holds if hold.is_busy}


def _settle(
    uow: UnitOfWork,
    pending: Sequence[LockedOrder],
    found: Placed,
    locked: LockedHolds,
    traces: Mapping[UUID, Trace],
) -> None:
    ids = {order.id for order in pending}
    holds = [hold for hold in locked.holds if hold.order_id in ids]
    expired = {hold.order_id for hold in holds if hold.is_due}
    refused = {hold.order_id for hold in holds if hold.credit_account_id in locked.closed}
    unpayable = expired | refused
    payable = [order for order in pending if order.id not in unpayable]
    confirmed, reserved = _allocate(payable, found.pieces, found.available)

    moves = [_move(order, confirmed, expired, refused) for order in pending]
    expire = [hold.id for hold in holds if hold.order_id in expired]
    post = [hold.id for hold in holds if hold.order_id in confirmed]
    void = [hold.id for hold in holds if hold.order_id not in confirmed and hold.order_id not in expired]
    resolving = uow.ledger.resolving(post=post, void=void, expire=expire)
    uow.write_with_events(uow.order_processing.settling(moves, reserved), resolving)
    for order, move in zip(pending, moves, strict=True):
        uow.record(_event(order, move), traces[order.id])


def _move(
    order: LockedOrder, confirmed: Collection[UUID], expired: Collection[UUID], refused: Collection[UUID]
) -> Move:
    if order.id in confirmed:
        return Move(order.id, order.status, OrderStatus.confirmed)
    if order.id in expired:
        return Move(order.id, order.status, OrderStatus.cancelled, EXPIRED)
    reason = SELLER_CLOSED if order.id in refused else OUT_OF_STOCK
    return Move(order.id, order.status, OrderStatus.rejected, reason)


def _event(order: LockedOrder, move: Move) -> OrderConfirmed | OrderCancelled | OrderRejected:
    if move.after is OrderStatus.confirmed:
        return OrderConfirmed(order_id=order.id, total=order.total)
    if move.after is OrderStatus.cancelled:
        return OrderCancelled(order_id=order.id, from_status=order.status.value, reason=move.reason)
    return OrderRejected(order_id=order.id, reason=move.reason)


def _allocate(
    orders: Sequence[LockedOrder], pieces: Mapping[UUID, Mapping[int, int]], available: dict[int, int]
) -> tuple[set[UUID], dict[int, int]]:
    """First come, first served: the orders that the stock covers in full, and the pieces of each product they take."""
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
