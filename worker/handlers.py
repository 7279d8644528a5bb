"""The event types that a worker processes, and their handlers."""

from collections.abc import Sequence

from services.orders.events import OrderPlaced
from services.orders.processing.service import process_placed
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork

SUBSCRIPTIONS: Sequence[Subscription[UnitOfWork]] = (Subscription(OrderPlaced, process_placed, plain_sql=True),)
