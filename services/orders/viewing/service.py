"""What each party sees of an order: its buyer and the staff all of it, a seller what they sold.

A seller sees their own lines, with the sums of these, and neither the lines of other sellers nor the buyer's reference.
Why something happened is shown to the parties if one of them or the service itself says it; what the staff says is for
the staff.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from services.fields import picked
from services.orders.models import ORDER_FIELDS, OWN_REASONS, Order, OrderTransition, Refund
from services.orders.repository import Sold
from services.orders.schemas import (
    OrderDetail,
    OrderListed,
    OrderSummary,
    OrderTransitionPublic,
    RefundPublic,
)
from services.query import Page, PageQuery
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope


@dataclass(frozen=True, slots=True)
class Sight:
    """How much of an order a caller sees."""

    seller_id: int | None
    """Only what this seller sold; None: everything."""
    parties: Collection[int] | None
    """The users whose reasons are shown; None: everyone's."""

    def tells(self, user_id: int | None) -> bool:
        """Whether what this user says is shown."""
        return self.parties is None or user_id in self.parties


def sight_of(caller: Caller, order: Order) -> Sight | None:
    """What the caller sees of the order, which is loaded with its lines and products; None if it is nothing."""
    if caller.may(Scope.orders_read_all):
        return Sight(None, None)
    sellers = {item.product.seller_id for item in order.items}
    if caller.id == order.buyer_id:
        return Sight(None, {order.buyer_id, *sellers})
    return Sight(caller.id, {order.buyer_id, caller.id}) if caller.id in sellers else None


async def detail(uow: UnitOfWork, order: Order, sight: Sight) -> OrderDetail:
    """The order with its lines and history, as far as it is seen."""
    items = [item for item in order.items if sight.seller_id in (None, item.product.seller_id)]
    sold = None
    if sight.seller_id is not None:
        amounts = [(item.quantity * item.unit_price, item.returned * item.unit_price) for item in items]
        sold = Sold(len(items), *(sum(each, Decimal(0)) for each in zip(*amounts, strict=True)))
    owners = await _owners_of_keys(uow, order.transitions) if sight.parties is not None else {}
    shown = {
        **_summary(order, sold),
        "items": items,
        "transitions": [_transition(one, sight, owners) for one in order.transitions],
    }
    return OrderDetail.model_validate(shown, from_attributes=True)


def listed(order: Order, sold: Sold | None, items: Sequence[object] | None) -> OrderListed:
    """An order of a list; `sold` is what the seller who lists it sold, and `items` are their lines."""
    return OrderListed.model_validate({**_summary(order, sold), "items": items}, from_attributes=True)


async def refunds(uow: UnitOfWork, order_id: UUID, sight: Sight, wanted: PageQuery) -> Page[RefundPublic]:
    """Refunds of the order, the oldest first; for a seller, those of what they sold, with these lines and amounts."""
    rows = await uow.refunds.page(order_id, wanted, seller_id=sight.seller_id)
    amounts: Mapping[UUID, Decimal] = {}
    if sight.seller_id is not None:
        amounts = await uow.refunds.amounts([refund.id for refund in rows.data], sight.seller_id)
    return rows.shown(lambda refund: _refund(refund, sight, amounts.get(refund.id, refund.amount)))


def _summary(order: Order, sold: Sold | None) -> dict[str, object]:
    seen = picked(order, OrderSummary.model_fields)
    if sold is None:
        return seen
    return {**seen, **dict.fromkeys(ORDER_FIELDS), **sold._asdict()}


def _transition(one: OrderTransition, sight: Sight, owners: Mapping[str, int]) -> OrderTransitionPublic:
    shown = OrderTransitionPublic.model_validate(one, from_attributes=True)
    if one.reason not in OWN_REASONS and not sight.tells(_user_of(one.actor, owners)):
        shown.reason = ""
    return shown


def _refund(refund: Refund, sight: Sight, amount: Decimal) -> RefundPublic:
    shown = RefundPublic.model_validate(refund, from_attributes=True)
    shown.amount = amount
    if not sight.tells(refund.requested_by):
        shown.reason = ""
    return shown


def _user_of(actor: str | None, owners: Mapping[str, int]) -> int | None:
    """The user who acted, in person or with an API key; None if it was someone else, or is not known."""
    if actor is not None and actor.startswith("user:"):
        return int(actor.removeprefix("user:"))
    return owners.get(actor or "")


async def _owners_of_keys(uow: UnitOfWork, moves: Sequence[OrderTransition]) -> Mapping[str, int]:
    """Who has the API keys with which someone gave a reason, by actor."""
    keys = {one.actor for one in moves if one.actor and one.actor.startswith("key:") and one.reason}
    if not keys:
        return {}
    owners = await uow.api_keys.owners([UUID(actor.removeprefix("key:")) for actor in keys])
    return {f"key:{key_id}": user_id for key_id, user_id in owners.items()}
