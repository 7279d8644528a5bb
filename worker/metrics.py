"""What the loops of this worker did, for Prometheus."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from sqlalchemy.ext.asyncio import AsyncEngine

from services import exposition
from services.outbox import metrics as engine

registry = CollectorRegistry()
batch_events = Histogram(
    "waybill_batch_events",
    "Events that one committed batch processed, put off or buried.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    registry=registry,
)
batch_seconds = Histogram(
    "waybill_batch_duration_seconds",
    "Duration of one batch, from the claim to the commit.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=registry,
)
rolled_back = Counter("waybill_batches_rolled_back", "Batches that were rolled back as a whole.", registry=registry)
_wakeups = Counter(
    "waybill_worker_wakeups",
    "Looks at the outbox, by what led to them: doorbell (it rang), poll (the timer, and events were due), "
    "empty_poll (the timer, and there was nothing to do).",
    ("cause",),
    registry=registry,
)
wakeups_by_doorbell = _wakeups.labels("doorbell")
wakeups_by_poll = _wakeups.labels("poll")
empty_polls = _wakeups.labels("empty_poll")


def rendering(
    jobs: Callable[[], Iterable[Metric]], engines: Mapping[str, AsyncEngine], skew: Callable[[], float]
) -> Callable[[], bytes]:
    """A function that renders the metrics of this worker, in any thread."""

    def render() -> bytes:
        own = [*exposition.registry.collect(), *registry.collect(), *engine.registry.collect()]
        return exposition.rendered([*own, *jobs(), exposition.pool_connections(engines), exposition.clock_skew(skew())])

    return render
