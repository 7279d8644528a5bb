"""Operations on orders."""

from collections.abc import Mapping
from uuid import UUID

from services.credits.approval.rules import Limits
from services.credits.ledger.repository import Share
from services.credits.ledger.service import moving
from services.errors import (
    Conflict,
    Forbidden,
    InsufficientCredits,
    NotFound,
    TransferRefused,
)
from services.orders.events import (
    OrderCancelled,
    OrderEvent,
    OrderFulfilled,
    OrderPlaced,
)
from services.orders.models import (
    ALL_REFUNDED,
    ALLOWED_MOVES,
    LINES_A_PAGE,
    LINES_EXAMINED,
    PAID,
    Order,
    OrderItem,
    OrderStatus,
    Refund,
    RefundBase,
)
from services.orders.placing.service import Patience as Patience
from services.orders.placing.service import awaits_payment, check_unpaid, draft, reference_taken
from services.orders.refunds.service import REFUNDABLE, give_back, wanted_pieces
from services.orders.repository import ORDER_WITH_DETAILS, ORDERS, LockedOrder, Move, Sold
from services.orders.schemas import (
    OrderCreate,
    OrderDetail,
    OrderListed,
    OrderPublic,
    RefundCreate,
)
from services.orders.viewing import service as viewing
from services.orders.viewing.service import Sight
from services.query import Page, PageQuery
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope


async def place(uow: UnitOfWork, buyer: Caller, wanted: OrderCreate, patience: Patience) -> OrderPublic:
    """Create an order at the current prices and hold the buyer's credits in a savepoint.

    If the buyer has too few credits, or the database does not allow the hold, the order becomes `awaiting_payment`, or
    `InsufficientCredits` or `TransferRefused` is raised if the client asked for that. Raises `InvalidInput` for
    products that are unknown, not for sale or the buyer's own, `AccountClosed` if the buyer's account is closed, and
    `AlreadyExists` for a reference that was used before. Raises `QuotaExceeded` if too many of the buyer's orders await
    payment already.
    """
    products = await uow.products.for_sale(sorted({item.product_id for item in wanted.items}))
    order = draft(buyer, wanted, products)
    status = OrderStatus.pending
    try:
        async with moving(uow, order.total):
            await uow.ledger.hold(order.id, buyer.id, order.shares(), patience.hold)
    except (InsufficientCredits, TransferRefused) as refusal:
        if not awaits_payment(refusal, wanted):
            raise
        status = OrderStatus.awaiting_payment
        # Of two that are placed at once, the second counts the first.
        await uow.ledger.lock_account(buyer.id)
        (unpaid,) = await uow.read(uow.order_placing.unpaid([buyer.id]))
        check_unpaid(unpaid[buyer.id], patience)
    placing = uow.orders.placing(order.written(status, patience))
    if wanted.reference is None:
        # Nothing can conflict with it, so it is written together with its event.
        uow.write_with_events(placing)
    elif not await uow.orders.place(placing):
        raise reference_taken(wanted.reference)
    uow.record(order.event(status))
    return order.shown(status)


async def find(uow: UnitOfWork, caller: Caller, order_id: UUID) -> tuple[Order, Sight]:
    """The order, and how much of it the caller sees.

    Raises `NotFound` for those who are no party to it and have no `orders:read_all`, as if it did not exist.
    """
    order = await uow.orders.get(order_id, options=ORDER_WITH_DETAILS)
    sight = None if order is None else viewing.sight_of(caller, order)
    if order is None or sight is None:
        raise _unknown(order_id)
    return order, sight


async def get(uow: UnitOfWork, caller: Caller, order_id: UUID) -> OrderDetail:
    """What the caller sees of the order. Raises `NotFound` as `find` does."""
    return await viewing.detail(uow, *await find(uow, caller, order_id))


async def listed(
    uow: UnitOfWork,
    wanted: PageQuery,
    *,
    with_items: bool,
    buyer_id: int | None = None,
    seller_id: int | None = None,
) -> Page[OrderListed]:
    """A page of orders. With their lines, it ends early rather than have more than `LINES_A_PAGE` of them.

    With `seller_id`, they are shown as this seller sees them, whatever else the caller may see. The page then also ends
    early rather than look at more than `LINES_EXAMINED` lines.
    """
    rows = await uow.orders.page(wanted, buyer_id=buyer_id, seller_id=seller_id)
    sold: Mapping[UUID, Sold] = {}
    if seller_id is not None:
        rows = ORDERS.within(rows, wanted, [order.item_count for order in rows.data], LINES_EXAMINED)
        sold = await uow.orders.sold_in([order.id for order in rows.data], seller_id)
    items: Mapping[UUID, list[OrderItem]] = {}
    if with_items:
        weights = [(order if seller_id is None else sold[order.id]).item_count for order in rows.data]
        rows = ORDERS.within(rows, wanted, weights, LINES_A_PAGE)
        items = await uow.orders.items_of([order.id for order in rows.data], seller_id)
    return rows.shown(
        lambda order: viewing.listed(order, None if seller_id is None else sold[order.id], items.get(order.id))
    )


async def pay(uow: UnitOfWork, buyer: Caller, order_id: UUID, patience: Patience) -> OrderDetail:
    """Hold the buyer's credits for an order that awaits payment.

    Raises `InsufficientCredits` if there are too few, `AccountClosed`, or `TransferRefused`.
    """
    order = await _locked(uow, buyer, order_id)
    if buyer.id != order.buyer_id:
        raise Forbidden("only the buyer can pay for an order")
    _check_move(order, OrderStatus.pending)
    shares = [Share(share.account_id, share.amount) for share in await uow.orders.shares(order_id)]
    async with moving(uow, order.total):
        await uow.ledger.hold(order_id, buyer.id, shares, patience.hold)
    placed = OrderPlaced(order_id=order_id, buyer_id=buyer.id, total=order.total)
    return await _moved(uow, buyer, order, OrderStatus.pending, PAID, placed)


async def cancel(uow: UnitOfWork, caller: Caller, order_id: UUID, reason: str, limits: Limits) -> OrderDetail:
    """Cancel an order that is not fulfilled, for its buyer, its only seller or an operator.

    Held credits and reserved stock are released, and payments are refunded. What an operator refunds for other sellers
    counts among what they do alone. Raises `ApprovalNeeded`, and `InsufficientCredits` if a seller has too few credits.
    """
    order = await _locked(uow, caller, order_id)
    if caller.id != order.buyer_id:
        await _must_sell_all(uow, caller, order_id, "cancel")
    _check_move(order, OrderStatus.cancelled)
    if order.status is OrderStatus.pending:
        found = await uow.ledger.lock_holds([order_id])
        async with moving(uow, order.total):
            await uow.ledger.resolve_holds(void=[hold.id for hold in found.holds])
    if order.status is OrderStatus.confirmed:
        sold = {line.line: line for line in await uow.refunds.sold(order_id)}
        # Pieces that were refunded before are not refunded again.
        left = {line.line: line.left for line in sold.values() if line.left > 0}
        if left:
            await give_back(
                uow,
                caller,
                order,
                sold,
                left,
                RefundBase(reason=reason),
                None if caller.id == order.buyer_id else limits,
            )
    cancelled = OrderCancelled(order_id=order_id, from_status=order.status.value, reason=reason)
    return await _moved(uow, caller, order, OrderStatus.cancelled, reason, cancelled)


async def refund(uow: UnitOfWork, caller: Caller, order_id: UUID, wanted: RefundCreate, limits: Limits) -> Refund:
    """Refund pieces of a paid order. A seller may refund their own lines, an operator any.

    Without lines, everything left that the caller may refund is refunded. A confirmed order with nothing left is
    cancelled. What an operator refunds for other sellers counts among what they do alone. Raises `InvalidInput` for
    lines that are unknown or another seller's, which is the same to the caller, and for more pieces than are left,
    `Conflict` if nothing was paid or nothing is left, `OwnAccount` for an operator who is the buyer, `ApprovalNeeded`,
    and `InsufficientCredits` if a seller has too few credits.
    """
    order = await _locked(uow, caller, order_id)
    sold = {line.line: line for line in await uow.refunds.sold(order_id)}
    mine = {
        number: line for number, line in sold.items() if caller.may(Scope.orders_manage) or line.seller_id == caller.id
    }
    if not mine:
        raise Forbidden("only sellers of the order or an operator may refund it")
    if order.status not in REFUNDABLE:
        raise Conflict(f"the order is {order.status.value}; there is no payment to refund")
    if wanted.lines is None:
        pieces = {number: line.left for number, line in mine.items() if line.left > 0}
        if not pieces:
            raise Conflict("everything has already been refunded")
    else:
        pieces = wanted_pieces(mine, wanted.lines)
    refund_id = await give_back(uow, caller, order, sold, pieces, wanted, limits)
    nothing_left = all(line.left == pieces.get(number, 0) for number, line in sold.items())
    if order.status is OrderStatus.confirmed and nothing_left:
        await uow.orders.move([Move(order.id, order.status, OrderStatus.cancelled, ALL_REFUNDED)])
        uow.record(OrderCancelled(order_id=order_id, from_status=order.status.value, reason=ALL_REFUNDED))
    return await uow.refunds.get(refund_id)


async def fulfil(uow: UnitOfWork, caller: Caller, order_id: UUID) -> OrderDetail:
    """Ship the reserved goods of a confirmed order, for its only seller or an operator."""
    order = await _locked(uow, caller, order_id)
    await _must_sell_all(uow, caller, order_id, "fulfil")
    _check_move(order, OrderStatus.fulfilled)
    pieces = (await uow.orders.pieces([order_id]))[order_id]
    await uow.inventory.lock(sorted(pieces))
    await uow.inventory.ship(order_id, pieces)
    return await _moved(uow, caller, order, OrderStatus.fulfilled, "", OrderFulfilled(order_id=order_id))


def _unknown(order_id: UUID) -> NotFound:
    return NotFound(f"order {order_id} does not exist, or you may not see it")


async def _may_see(uow: UnitOfWork, caller: Caller, order_id: UUID, buyer_id: int) -> bool:
    if caller.id == buyer_id or caller.may(Scope.orders_read_all):
        return True
    return any(share.seller_id == caller.id for share in await uow.orders.shares(order_id))


async def _locked(uow: UnitOfWork, caller: Caller, order_id: UUID) -> LockedOrder:
    order = (await uow.orders.lock([order_id])).get(order_id)
    if order is None or not await _may_see(uow, caller, order.id, order.buyer_id):
        raise _unknown(order_id)
    return order


async def _must_sell_all(uow: UnitOfWork, caller: Caller, order_id: UUID, verb: str) -> None:
    if caller.may(Scope.orders_manage):
        return
    sellers = {share.seller_id for share in await uow.orders.shares(order_id)}
    if sellers != {caller.id} or not caller.may(Scope.sales_write):
        raise Forbidden(f"only the seller of all its lines or an operator may {verb} this order")


def _check_move(order: LockedOrder, after: OrderStatus) -> None:
    if after not in ALLOWED_MOVES[order.status]:
        raise Conflict(f"the order is {order.status.value}; it cannot become {after.value}")


async def _moved(
    uow: UnitOfWork, caller: Caller, order: LockedOrder, after: OrderStatus, reason: str, event: OrderEvent
) -> OrderDetail:
    await uow.orders.move([Move(order.id, order.status, after, reason)])
    uow.record(event)
    return await get(uow, caller, order.id)
