"""Giving back what was paid for pieces of an order, and the pieces."""

from collections.abc import Mapping
from decimal import Decimal
from uuid import UUID

from services.credits.ledger.rules import Movement
from services.credits.models import TransferKind
from services.errors import Fault, InvalidInput
from services.fields import new_id
from services.orders.events import OrderRefunded
from services.orders.models import OrderStatus, RefundBase
from services.orders.refunds.repository import SoldLine
from services.orders.repository import LockedOrder
from services.orders.schemas import RefundLineCreate
from services.unit_of_work import UnitOfWork
from services.users.models import Caller

REFUNDABLE = frozenset({OrderStatus.confirmed, OrderStatus.fulfilled})
"""Orders in these states are paid."""


def wanted_pieces(sold: Mapping[int, SoldLine], wanted: list[RefundLineCreate]) -> dict[int, int]:
    """Pieces of each line that are asked back. Raises `InvalidInput` for a line that the order has not or has twice.

    Asking for more than is left of a line is refused too: never more than was paid, and never twice.
    """
    pieces: dict[int, int] = {}
    faults: list[Fault] = []
    for index, one in enumerate(wanted):
        line = sold.get(one.line)
        if line is None:
            faults.append(Fault(f"the order has no line {one.line}", f"#/lines/{index}/line"))
        elif one.line in pieces:
            faults.append(Fault(f"line {one.line} is named twice", f"#/lines/{index}/line"))
        elif one.quantity > line.left:
            left = f"{line.left} of {line.quantity} pieces of line {one.line} are left to refund"
            faults.append(Fault(left, f"#/lines/{index}/quantity"))
        else:
            pieces[one.line] = one.quantity
    if faults:
        raise InvalidInput("some lines cannot be refunded as asked", faults)
    return pieces


async def give_back(
    uow: UnitOfWork,
    caller: Caller,
    order: LockedOrder,
    sold: Mapping[int, SoldLine],
    pieces: Mapping[int, int],
    said: RefundBase,
) -> UUID:
    """Refund so many pieces of each line of a paid order; the refund's id. The order is locked by the caller.

    Each seller pays for its own lines, at the prices as sold. What was reserved is free again; what had left the house
    is on hand again. Raises `InsufficientCredits`, with no credits moved, where a seller has too few.
    """
    assert order.status in REFUNDABLE, "nothing was paid"
    goods: dict[int, int] = {}
    due: dict[int, Decimal] = {}
    for number, quantity in pieces.items():
        line = sold[number]
        goods[line.product_id] = goods.get(line.product_id, 0) + quantity
        due[line.seller_account_id] = due.get(line.seller_account_id, Decimal(0)) + quantity * line.unit_price
    await uow.inventory.lock(sorted(goods))
    if order.status is OrderStatus.confirmed:
        await uow.inventory.release(goods)
    else:
        await uow.inventory.take_back(goods)
    buyer = await uow.ledger.account_of(order.buyer_id)
    assert buyer is not None, "every user has an account"
    movements = [Movement(new_id(), account_id, buyer.id, due[account_id], order.id) for account_id in sorted(due)]
    async with uow.savepoint():
        await uow.ledger.transfer(movements, TransferKind.refund, said.reason)
    refund_id = new_id()
    amount = sum(due.values(), Decimal(0))
    await uow.refunds.write(refund_id, order.id, amount=amount, pieces=pieces, said=said, requested_by=caller.id)
    uow.record(OrderRefunded(order_id=order.id, refund_id=refund_id, amount=amount, pieces=dict(pieces)))
    return refund_id
