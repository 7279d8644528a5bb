"""Operations on orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from services.catalog.repository import ProductForSale
from services.catalog.schemas import ProductSummary
from services.credits.ledger.repository import Share
from services.credits.ledger.service import moving
from services.errors import (
    AlreadyExists,
    Conflict,
    Fault,
    Forbidden,
    InsufficientCredits,
    InvalidInput,
    NotFound,
    TransferRefused,
)
from services.fields import MAX_CREDITS, new_id, now, picked
from services.orders.events import (
    OrderAwaitingPayment,
    OrderCancelled,
    OrderEvent,
    OrderFulfilled,
    OrderPlaced,
)
from services.orders.models import ALLOWED_MOVES, ITEM_FIELDS, ORDER_FIELDS, Order, OrderStatus, Refund, RefundBase
from services.orders.refunds.service import REFUNDABLE, give_back, wanted_pieces
from services.orders.repository import ORDER_WITH_DETAILS, LockedOrder, Move, NewItem
from services.orders.schemas import (
    OnInsufficientCredits,
    OrderCreate,
    OrderItemPublic,
    OrderPublic,
    RefundCreate,
)
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import Caller, Role
from services.users.schemas import UserSummary

_ALL_REFUNDED = "everything was refunded"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long credits are held for a pending order, and how long an order may await payment."""

    hold: timedelta
    payment: timedelta

    @classmethod
    def from_settings(cls, settings: Settings) -> "Patience":
        return cls(timedelta(seconds=settings.hold_ttl), timedelta(seconds=settings.awaiting_payment_ttl))


async def place(uow: UnitOfWork, buyer: Caller, wanted: OrderCreate, patience: Patience) -> OrderPublic:
    """Create an order at the current prices and hold the buyer's credits in a savepoint.

    If the buyer has too few credits, or the database does not allow the hold, the order becomes `awaiting_payment`, or
    `InsufficientCredits` or `TransferRefused` is raised if the client asked for that. Raises `InvalidInput` for
    products that are unknown, not for sale or the buyer's own, `AccountClosed` if the buyer's account is closed, and
    `AlreadyExists` for a reference that was used before.
    """
    products = await uow.products.for_sale(sorted({item.product_id for item in wanted.items}))
    _check_products(buyer, wanted, products)
    items = [NewItem(item, products[item.product_id].price) for item in wanted.items]
    total = sum((item.amount for item in items), Decimal(0))
    if total > MAX_CREDITS:
        raise InvalidInput(f"the total of {total} is more than any account can hold", [Fault("is too much", "#/items")])

    order_id, at = new_id(), now()
    status = OrderStatus.pending
    try:
        async with moving(uow, total):
            await uow.ledger.hold(order_id, buyer.id, _shares(items, products), patience.hold)
    except (InsufficientCredits, TransferRefused):
        if wanted.on_insufficient_credits is OnInsufficientCredits.refuse:
            raise
        status = OrderStatus.awaiting_payment
    placing = uow.orders.placing(
        order_id=order_id,
        buyer_id=buyer.id,
        wanted=wanted,
        status=status,
        total=total,
        items=items,
        at=at,
        expires_in=patience.payment if status is OrderStatus.awaiting_payment else None,
    )
    if wanted.reference is None:
        # Nothing can conflict with it, so it is written together with its event.
        uow.write_with_events(placing)
    elif not await uow.orders.place(placing):
        raise AlreadyExists(
            f"you already placed an order with the reference {wanted.reference!r}", [Fault("is taken", "#/reference")]
        )
    event = OrderPlaced if status is OrderStatus.pending else OrderAwaitingPayment
    uow.record(event(order_id=order_id, buyer_id=buyer.id, total=total))
    return OrderPublic(
        **picked(wanted, ORDER_FIELDS),
        id=order_id,
        status=status,
        total=total,
        refunded=Decimal(0),
        item_count=len(items),
        version=1,
        created_at=at,
        updated_at=at,
        buyer=UserSummary(id=buyer.id, full_name=buyer.full_name),
        items=[
            OrderItemPublic(
                **picked(item.wanted, ITEM_FIELDS),
                line=line,
                returned=0,
                unit_price=item.unit_price,
                product=_summary(products[item.wanted.product_id]),
            )
            for line, item in enumerate(items, start=1)
        ],
    )


async def get(uow: UnitOfWork, caller: Caller, order_id: UUID) -> Order:
    """The order with its lines and history, for its buyer, its sellers and operators.

    Raises `NotFound` for anyone else, so as not to reveal whether the order exists.
    """
    order = await uow.orders.get(order_id, options=ORDER_WITH_DETAILS)
    if order is None or not await _may_see(uow, caller, order.id, order.buyer_id):
        raise _unknown(order_id)
    return order


async def pay(uow: UnitOfWork, buyer: Caller, order_id: UUID, patience: Patience) -> Order:
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
    return await _moved(uow, buyer, order, OrderStatus.pending, "paid", placed)


async def cancel(uow: UnitOfWork, caller: Caller, order_id: UUID, reason: str) -> Order:
    """Cancel an order that is not fulfilled, for its buyer, its only seller or an operator.

    Held credits and reserved stock are released, and payments are refunded. Raises `InsufficientCredits` if a seller
    has too few credits for that.
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
            await give_back(uow, caller, order, sold, left, RefundBase(reason=reason))
    cancelled = OrderCancelled(order_id=order_id, from_status=order.status.value, reason=reason)
    return await _moved(uow, caller, order, OrderStatus.cancelled, reason, cancelled)


async def refund(uow: UnitOfWork, caller: Caller, order_id: UUID, wanted: RefundCreate) -> Refund:
    """Refund pieces of a paid order. A seller may refund their own lines, an operator any.

    Without lines, everything left that the caller may refund is refunded. A confirmed order with nothing left is
    cancelled. Raises `InvalidInput` for unknown lines or more pieces than are left, `Conflict` if nothing was paid or
    nothing is left, and `InsufficientCredits` if a seller has too few credits.
    """
    order = await _locked(uow, caller, order_id)
    sold = {line.line: line for line in await uow.refunds.sold(order_id)}
    mine = {
        number: line for number, line in sold.items() if caller.role is Role.operator or line.seller_id == caller.id
    }
    asked = {one.line for one in wanted.lines or ()}
    if not mine or asked & (sold.keys() - mine.keys()):
        raise Forbidden("only the seller of these lines or an operator may refund them")
    if order.status not in REFUNDABLE:
        raise Conflict(f"the order is {order.status.value}; there is no payment to refund")
    if wanted.lines is None:
        pieces = {number: line.left for number, line in mine.items() if line.left > 0}
        if not pieces:
            raise Conflict("everything has already been refunded")
    else:
        pieces = wanted_pieces(mine, wanted.lines)
    refund_id = await give_back(uow, caller, order, sold, pieces, wanted)
    nothing_left = all(line.left == pieces.get(number, 0) for number, line in sold.items())
    if order.status is OrderStatus.confirmed and nothing_left:
        await uow.orders.move([Move(order.id, order.status, OrderStatus.cancelled, _ALL_REFUNDED)])
        uow.record(OrderCancelled(order_id=order_id, from_status=order.status.value, reason=_ALL_REFUNDED))
    return await uow.refunds.get(refund_id)


async def fulfil(uow: UnitOfWork, caller: Caller, order_id: UUID) -> Order:
    """Ship the reserved goods of a confirmed order, for its only seller or an operator."""
    order = await _locked(uow, caller, order_id)
    await _must_sell_all(uow, caller, order_id, "fulfil")
    _check_move(order, OrderStatus.fulfilled)
    pieces = (await uow.orders.pieces([order_id]))[order_id]
    await uow.inventory.lock(sorted(pieces))
    await uow.inventory.ship(pieces)
    return await _moved(uow, caller, order, OrderStatus.fulfilled, "", OrderFulfilled(order_id=order_id))


def _check_products(buyer: Caller, wanted: OrderCreate, products: Mapping[int, ProductForSale]) -> None:
    faults = []
    for index, item in enumerate(wanted.items):
        product = products.get(item.product_id)
        if product is None:
            faults.append(Fault(f"product {item.product_id} is unknown", f"#/items/{index}/product_id"))
        elif not product.is_active:
            faults.append(Fault(f"product {item.product_id} is not for sale", f"#/items/{index}/product_id"))
        elif product.seller_id == buyer.id:
            faults.append(Fault(f"product {item.product_id} is your own", f"#/items/{index}/product_id"))
    if faults:
        raise InvalidInput("some products cannot be ordered", faults)


def _shares(items: Sequence[NewItem], products: Mapping[int, ProductForSale]) -> list[Share]:
    amounts: dict[int, Decimal] = {}
    for item in items:
        account_id = products[item.wanted.product_id].seller_account_id
        amounts[account_id] = amounts.get(account_id, Decimal(0)) + item.amount
    return [Share(account_id, amounts[account_id]) for account_id in sorted(amounts)]


def _summary(product: ProductForSale) -> ProductSummary:
    return ProductSummary(id=product.id, sku=product.sku, name=product.name)


def _unknown(order_id: UUID) -> NotFound:
    return NotFound(f"order {order_id} does not exist, or you may not see it")


async def _may_see(uow: UnitOfWork, caller: Caller, order_id: UUID, buyer_id: int) -> bool:
    if caller.id == buyer_id or caller.role is Role.operator:
        return True
    return any(share.seller_id == caller.id for share in await uow.orders.shares(order_id))


async def _locked(uow: UnitOfWork, caller: Caller, order_id: UUID) -> LockedOrder:
    order = (await uow.orders.lock([order_id])).get(order_id)
    if order is None or not await _may_see(uow, caller, order.id, order.buyer_id):
        raise _unknown(order_id)
    return order


async def _must_sell_all(uow: UnitOfWork, caller: Caller, order_id: UUID, verb: str) -> None:
    if caller.role is Role.operator:
        return
    sellers = {share.seller_id for share in await uow.orders.shares(order_id)}
    if sellers != {caller.id}:
        raise Forbidden(f"only the seller of all its lines or an operator may {verb} this order")


def _check_move(order: LockedOrder, after: OrderStatus) -> None:
    if after not in ALLOWED_MOVES[order.status]:
        raise Conflict(f"the order is {order.status.value}; it cannot become {after.value}")


async def _moved(
    uow: UnitOfWork, caller: Caller, order: LockedOrder, after: OrderStatus, reason: str, event: OrderEvent
) -> Order:
    await uow.orders.move([Move(order.id, order.status, after, reason)])
    uow.record(event)
    return await get(uow, caller, order.id)
