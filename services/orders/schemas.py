"""Request and response schemas for orders."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, computed_field

from services.catalog.schemas import ProductSummary
from services.fields import Money, Quantity, RequestBody, StrictId, Text, storable
from services.orders.models import OrderBase, OrderItemBase, OrderStatus, RefundBase
from services.users.schemas import UserSummary

MAX_ITEMS = 750
"""The maximum number of lines in an order."""

Reference = Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S"), AfterValidator(storable)]
Reason = Annotated[Text, Field(max_length=200)]


class Side(StrEnum):
    """Whose orders are meant: those the caller placed, those with something the caller sells, or all."""

    buyer = "buyer"
    seller = "seller"
    everybody = "everybody"


class OrderItemCreate(OrderItemBase, RequestBody):
    """An order line. Its price is the product's current price; the client does not set it."""

    product_id: StrictId
    quantity: Quantity


class OnInsufficientCredits(StrEnum):
    """What to do with an order that the buyer's credits do not cover."""

    await_payment = "await_payment"
    refuse = "refuse"


class OrderCreate(OrderBase, RequestBody):
    """A new order. `reference` is the buyer's own name for it, such as an invoice number; it cannot be used twice."""

    items: Annotated[list[OrderItemCreate], Field(min_length=1, max_length=MAX_ITEMS)]
    reference: Reference | None = None
    on_insufficient_credits: OnInsufficientCredits = OnInsufficientCredits.await_payment


class OrderCancel(RequestBody):
    """Why an order is cancelled."""

    reason: Reason = ""


class RefundLineCreate(RequestBody):
    """Pieces of one line to refund."""

    line: Annotated[int, Field(strict=True, ge=1, le=MAX_ITEMS)]
    quantity: Quantity


class RefundCreate(RefundBase, RequestBody):
    """What to refund of an order: some lines, or everything that is left if `lines` is omitted."""

    lines: Annotated[list[RefundLineCreate], Field(min_length=1, max_length=MAX_ITEMS)] | None = None
    reason: Reason = ""


class RefundLinePublic(BaseModel):
    """Refunded pieces of one line."""

    line: int
    quantity: int


class RefundPublic(RefundBase):
    """A refund of pieces of an order; `amount` is what was paid for them."""

    id: UUID
    order_id: UUID
    amount: Money
    reason: str
    created_at: datetime
    lines: list[RefundLinePublic]


class OrderItemPublic(OrderItemBase):
    """One line of an order, at the price of the sale. `returned` is the number of refunded pieces."""

    line: int
    returned: int
    unit_price: Money
    product: ProductSummary

    @computed_field  # type: ignore[prop-decorator]
    @property
    def line_total(self) -> Money:
        return Decimal(self.unit_price * self.quantity)


class OrderPublic(OrderBase):
    """An order with its lines and its buyer. `refunded` is the part of the total that went back to the buyer."""

    id: UUID
    status: OrderStatus
    total: Money
    refunded: Money
    item_count: int
    version: int
    created_at: datetime
    updated_at: datetime
    buyer: UserSummary
    items: list[OrderItemPublic]


class OrderTransitionPublic(BaseModel):
    """One change of an order's status."""

    from_status: OrderStatus | None
    to_status: OrderStatus
    reason: str
    created_at: datetime


class OrderDetail(OrderPublic):
    """An order with its history."""

    transitions: list[OrderTransitionPublic]
