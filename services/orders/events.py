"""Events about orders."""

from decimal import Decimal
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from services.outbox.events import PERSONAL, Event


class OrderEvent(Event):
    """A fact about one order."""

    order_id: UUID = Field(description="The order.")

    @property
    def aggregate(self) -> str:
        return f"order/{self.order_id}"


class OrderPlaced(OrderEvent):
    """The buyer's credits are held; a worker will reserve the stock and confirm the order, or reject it."""

    type: ClassVar[str] = "order.placed"
    queued: ClassVar[bool] = True

    buyer_id: Annotated[int, PERSONAL] = Field(description="The buyer.")
    total: Decimal = Field(description="The order's total, in credits.")


class OrderAwaitingPayment(OrderEvent):
    """The buyer's credits did not cover the order; it awaits payment."""

    type: ClassVar[str] = "order.awaiting_payment"

    buyer_id: Annotated[int, PERSONAL] = Field(description="The buyer.")
    total: Decimal = Field(description="The order's total, in credits.")


class OrderConfirmed(OrderEvent):
    """Stock is reserved and the sellers are paid."""

    type: ClassVar[str] = "order.confirmed"

    total: Decimal = Field(description="The order's total, in credits.")


class OrderRejected(OrderEvent):
    """There was not enough stock, or a seller's account is closed; the held credits are released."""

    type: ClassVar[str] = "order.rejected"

    reason: Annotated[str, PERSONAL] = Field(description="The reason, as text.")


class OrderCancelled(OrderEvent):
    """The order was cancelled; held credits are released, payments refunded."""

    type: ClassVar[str] = "order.cancelled"

    from_status: str = Field(description="The order's previous status: awaiting_payment, pending or confirmed.")
    reason: Annotated[str, PERSONAL] = Field(description="The reason, as text.")


class OrderRefunded(OrderEvent):
    """The payment for some pieces went back to the buyer."""

    type: ClassVar[str] = "order.refunded"

    refund_id: UUID = Field(description="The refund.")
    amount: Decimal = Field(description="The refunded amount, in credits.")
    pieces: dict[int, int] = Field(description="The number of refunded pieces, by line number.")


class OrderFulfilled(OrderEvent):
    """The goods were shipped."""

    type: ClassVar[str] = "order.fulfilled"
