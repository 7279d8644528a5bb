"""What happens to orders."""

from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from services.outbox.events import Event


class OrderEvent(Event):
    """A fact about one order. Amounts are credits with two decimals."""

    order_id: UUID

    @property
    def aggregate(self) -> str:
        return f"order/{self.order_id}"


class OrderPlaced(OrderEvent):
    """The buyer's credits are held; a worker reserves the stock and confirms the order, or rejects it."""

    type: ClassVar[str] = "order.placed"
    queued: ClassVar[bool] = True

    buyer_id: int
    total: Decimal


class OrderAwaitingPayment(OrderEvent):
    """The buyer's credits did not cover the order; it waits to be paid."""

    type: ClassVar[str] = "order.awaiting_payment"

    buyer_id: int
    total: Decimal


class OrderConfirmed(OrderEvent):
    """Stock is reserved and the sellers are paid."""

    type: ClassVar[str] = "order.confirmed"

    total: Decimal


class OrderRejected(OrderEvent):
    """There was not enough stock; the held credits are free again."""

    type: ClassVar[str] = "order.rejected"

    reason: str


class OrderCancelled(OrderEvent):
    """The order will not be carried out; held credits are free again, paid ones refunded."""

    type: ClassVar[str] = "order.cancelled"

    from_status: str
    reason: str


class OrderRefunded(OrderEvent):
    """What was paid for some pieces went back to the buyer. `pieces` is by line."""

    type: ClassVar[str] = "order.refunded"

    refund_id: UUID
    amount: Decimal
    pieces: dict[int, int]


class OrderFulfilled(OrderEvent):
    """The goods have left the house."""

    type: ClassVar[str] = "order.fulfilled"
