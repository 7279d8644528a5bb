"""What operators see of a day."""

from datetime import date
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from services.fields import Schema


class Happened(NamedTuple):
    """An event about an order. Without an `amount`, the order's total counts."""

    day: date
    type: str
    order_id: UUID
    amount: Decimal | None


class Tally(Schema):
    """How often it happened on a day, and the credits: the totals of the orders, or the amounts of the refunds."""

    orders: int = 0
    amount: Decimal = Decimal("0.00")


class OrderDayPublic(Schema):
    """What happened to orders on one day, UTC. An order may have been placed on another day than it was confirmed.

    Cancelling a confirmed order also refunds it, so what sellers earned is `confirmed` less `refunded`.
    """

    day: date
    placed: Tally
    awaiting_payment: Tally
    confirmed: Tally
    rejected: Tally
    cancelled: Tally
    fulfilled: Tally
    refunded: Tally
