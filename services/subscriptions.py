"""The event types that workers process, with their handlers; and what becomes of an event that is discarded."""

from collections.abc import Sequence

from services.orders.events import OrderPlaced
from services.orders.processing.service import cancel_discarded, explain_status, process_placed
from services.outbox.subscription import AnySubscription, Subscription
from services.unit_of_work import UnitOfWork

SUBSCRIPTIONS: Sequence[AnySubscription[UnitOfWork]] = (
    Subscription(OrderPlaced, process_placed, plain_sql=True, on_discard=cancel_discarded, explain=explain_status),
)
