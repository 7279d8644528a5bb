"""Refunds what was paid for pieces of an order, and returns the pieces to stock."""

from collections.abc import Mapping
from decimal import Decimal
from uuid import UUID

from services.credits.approval.rules import Limits
from services.credits.approval.service import check_alone, count
from services.credits.ledger.rules import Movement
from services.credits.ledger.service import refusals
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
    """The pieces to refund of each line. Raises `InvalidInput` for lines that are unknown or listed twice.

    It also refuses to refund more pieces than are left of a line, so nothing is refunded twice.
    """
    pieces: dict[int, int] = {}
    faults: list[Fault] = []
    for index, one in enumerate(wanted):
        line = sold.get(one.line)
        if line is None:
            faults.append(Fault(f"there is no line {one.line} that you may refund", f"#/lines/{index}/line"))
        elif one.line in pieces:
            faults.append(Fault(f"line {one.line} is listed twice", f"#/lines/{index}/line"))
        elif one.quantity > line.left:
            left = f"only {line.left} of {line.quantity} pieces of line {one.line} are left to refund"
            faults.append(Fault(left, f"#/lines/{index}/quantity"))
        else:
            pieces[one.line] = one.quantity
    if faults:
        raise InvalidInput("some lines cannot be refunded as requested", faults)
    return pieces


async def give_back(
    uow: UnitOfWork,
    caller: Caller,
    order: LockedOrder,
    sold: Mapping[int, SoldLine],
    pieces: Mapping[int, int],
    said: RefundBase,
    limits: Limits | None,
) -> UUID:
    """Refund `pieces` of each line of a paid order; returns the refund's id. The caller has locked the order.

    Each seller pays for their own lines, at the prices of the sale. Reserved pieces are released; shipped ones are on
    hand again. What the caller refunds of other sellers' lines is within `limits`; None if the order is the caller's
    own to cancel. Raises `OwnAccount`, `ApprovalNeeded`, `InsufficientCredits` if a seller has too few, or another
    refusal, and has then changed nothing.
    """
    assert order.status in REFUNDABLE, "nothing was paid"
    goods: dict[int, int] = {}
    due: dict[int, Decimal] = {}
    own: set[int] = set()
    for number, quantity in pieces.items():
        line = sold[number]
        goods[line.product_id] = goods.get(line.product_id, 0) + quantity
        due[line.seller_account_id] = due.get(line.seller_account_id, Decimal(0)) + quantity * line.unit_price
        if line.seller_id == caller.id:
            own.add(line.seller_account_id)
    refund_id = new_id()
    amount = sum(due.values(), Decimal(0))
    # All of it: goods whose price was not given back stay sold.
    async with uow.savepoint(plain=True):
        buyer = await uow.ledger.account_of(order.buyer_id)
        assert buyer is not None, "every user has an account"
        movements = [Movement(new_id(), account_id, buyer.id, due[account_id], order.id) for account_id in sorted(due)]
        others = [one for one in movements if limits is not None and one.debit_account_id not in own]
        if limits is not None and others:
            await check_alone(uow, caller, others, limits, "refund fewer pieces, or leave it to the sellers")
        await uow.inventory.lock(sorted(goods))
        if order.status is OrderStatus.confirmed:
            await uow.inventory.release(goods)
        else:
            await uow.inventory.take_back(order.id, goods)
        with refusals(amount):
            await uow.ledger.transfer(movements, TransferKind.refund, said.reason)
        if others:
            count(uow, caller, others)
        await uow.refunds.write(refund_id, order.id, amount=amount, pieces=pieces, said=said, requested_by=caller.id)
    uow.record(OrderRefunded(order_id=order.id, refund_id=refund_id, amount=amount, pieces=dict(pieces)))
    return refund_id
