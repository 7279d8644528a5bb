"""Orders by day: a consumer of the event log that counts what happened, and what operators read."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from services.fields import time_of
from services.orders.days.schemas import Happened, OrderDayPublic, Tally
from services.orders.events import (
    OrderAwaitingPayment,
    OrderCancelled,
    OrderConfirmed,
    OrderFulfilled,
    OrderPlaced,
    OrderRefunded,
    OrderRejected,
)
from services.outbox.events import Event
from services.outbox.log.schemas import LoggedEvent
from services.unit_of_work import UnitOfWork

COUNTED: dict[str, type[Event]] = {
    "placed": OrderPlaced,
    "awaiting_payment": OrderAwaitingPayment,
    "confirmed": OrderConfirmed,
    "rejected": OrderRejected,
    "cancelled": OrderCancelled,
    "fulfilled": OrderFulfilled,
    "refunded": OrderRefunded,
}
"""The fields of a day and the events that they count."""


async def count(uow: UnitOfWork, events: Sequence[LoggedEvent]) -> None:
    """Add the events to their days."""
    await uow.order_days.add(
        [Happened(event.made_at.date(), event.type, event.payload["order_id"], _refunded(event)) for event in events]
    )


async def start_over(uow: UnitOfWork) -> None:
    """Delete the days that the log still covers: they are counted again. Earlier ones stay.

    The day of an event is that of its id, as its month is. Months are dropped whole, so no day is covered in part.
    """
    oldest = await uow.log.oldest()
    if oldest is not None:
        await uow.order_days.forget(time_of(oldest).date())


async def newest(uow: UnitOfWork, days: int) -> list[OrderDayPublic]:
    """Up to `days` days, today included, the newest first; days on which nothing happened are left out."""
    found: dict[date, dict[str, Tally]] = {}
    for row in await uow.order_days.newest(days):
        found.setdefault(row["day"], {})[row["type"]] = Tally(orders=row["orders"], amount=row["amount"])
    return [
        OrderDayPublic(day=day, **{name: tallies.get(event.type, Tally()) for name, event in COUNTED.items()})
        for day, tallies in found.items()
    ]


def _refunded(event: LoggedEvent) -> Decimal | None:
    amount: Any = event.payload.get("amount") if event.type == OrderRefunded.type else None
    return None if amount is None else Decimal(str(amount))
