"""What happens to orders."""

from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from services.outbox.events import Event


class OrderEvent(Event):
    """A fact about one order."""

    order_id: UUID = Field(description="The order.")

    @property
    def aggregate(self) -> str:
        return f"order/{self.order_id}"


class OrderPlaced(OrderEvent):
    """The buyer's credits are held; a worker reserves the stock and confirms the order, or rejects it."""

    type: ClassVar[str] = "order.placed"
    queued: ClassVar[bool] = True

    buyer_id: int = Field(description="The user who buys.")
    total: Decimal = Field(description="What the order costs, in credits.")


class OrderAwaitingPayment(OrderEvent):
    """The buyer's credits did not cover the order; it waits to be paid."""

    type: ClassVar[str] = "order.awaiting_payment"

    buyer_id: int = Field(description="The user who buys.")
    total: Decimal = Field(description="What the order costs, in credits.")


class OrderConfirmed(OrderEvent):
    """Stock is reserved and the sellers are paid."""

    type: ClassVar[str] = "order.confirmed"

    total: Decimal = Field(description="What the order costs, in credits.")


class OrderRejected(OrderEvent):
    """There was not enough stock, or a seller's account is closed; the held credits are free again."""

    type: ClassVar[str] = "order.rejected"

    reason: str = Field(description="The reason, in words.")


class OrderCancelled(OrderEvent):
    """The order will not be carried out; held credits are free again, paid ones refunded."""

    type: ClassVar[str] = "order.cancelled"

    from_status: str = Field(description="The order's status before: awaiting_payment, pending or confirmed.")
    reason: str = Field(description="The reason, in words.")


class OrderRefunded(OrderEvent):
    """What was paid for some pieces went back to the buyer."""

    type: ClassVar[str] = "order.refunded"

    refund_id: UUID = Field(description="The refund.")
    amount: Decimal = Field(description="What the buyer got back, in credits.")
    pieces: dict[int, int] = Field(description="The number of refunded pieces, by line number.")


class OrderFulfilled(OrderEvent):
    """The goods have left the house."""

    type: ClassVar[str] = "order.fulfilled"
