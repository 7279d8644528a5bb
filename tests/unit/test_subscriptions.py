"""A subscription takes only a handler of its own event. mypy checks this file: an unused `type: ignore` is an error."""

from collections.abc import Sequence

import pytest

from services.orders.events import OrderCancelled, OrderPlaced
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import AnySubscription, Subscription
from services.unit_of_work import UnitOfWork


async def on_placed(_: UnitOfWork, __: Sequence[Claimed[OrderPlaced]]) -> None: ...


async def on_cancelled(_: UnitOfWork, __: Sequence[Claimed[OrderCancelled]]) -> None: ...


def test_a_handler_of_another_event_is_a_type_error() -> None:
    Subscription(OrderPlaced, on_placed)
    Subscription(OrderPlaced, on_cancelled)  # type: ignore[arg-type]


def test_each_type_has_one_handler() -> None:
    twice: list[AnySubscription[UnitOfWork]] = [
        Subscription(OrderPlaced, on_placed),
        Subscription(OrderPlaced, on_placed),
    ]
    with pytest.raises(ValueError, match=r"duplicate event types: order\.placed"):
        Processor[UnitOfWork](lambda: pytest.fail("not opened"), twice, retry=RetryPolicy(1, 1.0, 1.0), batch_size=1)
