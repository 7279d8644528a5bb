"""What workers run: the handlers of event types, and the consumers of the event log."""

from collections.abc import Sequence

from services.analytics import Analytics
from services.orders.days import service as days
from services.orders.events import OrderPlaced
from services.orders.processing.service import cancel_discarded, explain_status, process_placed
from services.outbox.consumers import Consumer
from services.outbox.sink import AnyConsumer
from services.outbox.subscription import AnySubscription, Subscription
from services.reports import service as reports
from services.unit_of_work import UnitOfWork

SUBSCRIPTIONS: Sequence[AnySubscription[UnitOfWork]] = (
    Subscription(OrderPlaced, process_placed, plain_sql=True, on_discard=cancel_discarded, explain=explain_status),
)

CONSUMERS: Sequence[Consumer[UnitOfWork]] = (
    Consumer("orders-by-day", days.count, types=tuple(days.COUNTED.values()), on_start=days.start_over),
)


def consumers_of(analytics: Analytics | None) -> Sequence[AnyConsumer[UnitOfWork]]:
    """The consumers that workers run; that of reports only if there is an analytics database."""
    return CONSUMERS if analytics is None else (*CONSUMERS, reports.consumer(analytics.open))
