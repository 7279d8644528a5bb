"""Request and response schemas for orders."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field, computed_field

from services.catalog.schemas import ProductSummary
from services.fields import SOME_FAULTS, Money, RequestBody, Schema
from services.orders.models import (
    MAX_ITEMS,
    OrderBase,
    OrderItemBase,
    OrderStatus,
    OrderTransitionBase,
    Reason,
    RefundBase,
    RefundLineBase,
)
from services.users.schemas import UserSummary


class Side(StrEnum):
    """Whose orders are meant: those the caller placed, those with something the caller sells, or all."""

    buyer = "buyer"
    seller = "seller"
    everybody = "everybody"


class OrderItemCreate(OrderItemBase, RequestBody):
    """An order line. Its price is the product's current price; the client does not set it."""


class OnInsufficientCredits(StrEnum):
    """What to do with an order that the buyer's credits do not cover."""

    await_payment = "await_payment"
    refuse = "refuse"


class OrderCreate(OrderBase, RequestBody):
    """A new order. `reference` is the buyer's own name for it, such as an invoice number; it cannot be used twice."""

    items: Annotated[list[OrderItemCreate], Field(min_length=1, max_length=MAX_ITEMS), SOME_FAULTS]
    on_insufficient_credits: OnInsufficientCredits = OnInsufficientCredits.await_payment


class OrderCancel(RequestBody):
    """Why an order is cancelled. What an operator writes here is for the staff only."""

    reason: Reason = ""


class RefundLineCreate(RefundLineBase, RequestBody):
    """Pieces of one line to refund."""


class RefundCreate(RefundBase, RequestBody):
    """What to refund of an order: some lines, or everything that is left if `lines` is omitted.

    What an operator writes as the `reason` is for the staff only.
    """

    lines: Annotated[list[RefundLineCreate], Field(min_length=1, max_length=MAX_ITEMS), SOME_FAULTS] | None = None


class RefundLinePublic(RefundLineBase, Schema):
    """Refunded pieces of one line."""


class RefundPublic(RefundBase, Schema):
    """A refund of pieces of an order; `amount` is what was paid for them. For a seller, only what they sold counts."""

    id: UUID
    order_id: UUID
    amount: Money
    created_at: datetime
    lines: list[RefundLinePublic]


class OrderItemPublic(OrderItemBase, Schema):
    """One line of an order, at the price of the sale. `returned` is the number of refunded pieces."""

    line: int
    returned: int
    unit_price: Money
    product: ProductSummary

    @computed_field  # type: ignore[prop-decorator]
    @property
    def line_total(self) -> Money:
        return Decimal(self.unit_price * self.quantity)


class OrderSummary(OrderBase, Schema):
    """An order with its buyer. `refunded` is the part of the total that went back to the buyer.

    For a seller, `total`, `refunded` and `item_count` are of what they sold, and `reference` is null.
    """

    id: UUID
    status: OrderStatus
    total: Money
    refunded: Money
    item_count: int
    version: int
    created_at: datetime
    updated_at: datetime
    buyer: UserSummary


class OrderPublic(OrderSummary):
    """An order with its lines and its buyer."""

    items: list[OrderItemPublic]


class OrderListed(OrderSummary):
    """An order in a list. `items` is null unless the request asks for the lines (`include=items`)."""

    items: list[OrderItemPublic] | None = None


class Include(StrEnum):
    """What else a list of orders shows of each."""

    items = "items"


class OrderTransitionPublic(OrderTransitionBase, Schema):
    """One change of an order's status. `reason` is empty if it is for the staff only."""


class OrderDetail(OrderPublic):
    """An order with its history."""

    transitions: list[OrderTransitionPublic]
