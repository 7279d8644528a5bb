"""What the processors of this process did, for Prometheus. Counted only once a batch is committed."""

from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.clock import CLOCK
from services.fields import seconds_of
from services.outbox.engine.schemas import Batch, ClaimedRow, ProcessDied
from services.outbox.events import NoHandler, Unprocessable
from services.outbox.models import FailureReason
from services.outbox.policy import is_locked, is_transient
from services.outbox.subscription import TimedOut

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)

_SAMPLED = 32
"""About how many events of one type and batch are looked at for the queue time."""

registry = CollectorRegistry()
_processed = Counter("waybill_events_processed", "Events that were processed, by type.", ("type",), registry=registry)
_failed = Counter(
    "waybill_events_failed", "Attempts that failed, by type and reason.", ("type", "reason"), registry=registry
)
_retried = Counter(
    "waybill_events_retried", "Failed events that will be tried again, by type.", ("type",), registry=registry
)
_buried = Counter("waybill_events_buried", "Events that became dead letters, by type.", ("type",), registry=registry)
_handled = Histogram(
    "waybill_handler_duration_seconds",
    "Duration of one call of a handler, for a batch of events of one type.",
    ("type",),
    buckets=_SECONDS[:13],
    registry=registry,
)


class _QueueTimes(Collector):
    """A histogram of a sample: of a large batch, every nth event counts n times.

    An event costs a worker 10 µs of CPU time in all, and looking at the age of each would add several percent.
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, event_type: str, rows: Sequence[ClaimedRow], at: float) -> None:
        """Add events that were processed at this time, in seconds since the epoch."""
        counts = self._counts.setdefault(event_type, [0] * (len(_SECONDS) + 1))
        total = self._sums.setdefault(event_type, 0.0)
        weight = 1 + len(rows) // _SAMPLED
        for row in rows[::weight]:
            if not row.attempts:
                # The time is in the event's id, by the clock of the process that recorded it.
                seconds = max(0.0, at - seconds_of(row.event_id))
                counts[bisect_left(_SECONDS, seconds)] += weight
                total += weight * seconds
        self._sums[event_type] = total

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "waybill_event_queue_seconds",
            "Time from when an event was recorded until the commit of its processing, if its first attempt succeeded.",
            labels=("type",),
        )
        bounds = [*map(str, _SECONDS), "+Inf"]
        for event_type, counts in sorted(self._counts.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric((event_type,), buckets, self._sums.get(event_type, 0.0))
        return [family]


_OF_ATTEMPTS = [reason for reason in FailureReason if reason is not FailureReason.buried]
_queue_times = _QueueTimes()
registry.register(_queue_times)


def announce(types: Sequence[str]) -> None:
    """Export zeros for these event types, so that rates and alerts see the first event of each."""
    for name in types:
        for counter in (_processed, _retried, _buried):
            counter.labels(name)
        for reason in _OF_ATTEMPTS:
            _failed.labels(name, reason.value)
        _handled.labels(name)
        _queue_times.add(name, (), 0.0)


def handled(event_type: str, seconds: float) -> None:
    """Note how long a call of a handler took."""
    _handled.labels(event_type).observe(seconds)


def committed(batch: Batch) -> None:
    """Count what a committed batch did."""
    at = CLOCK.time()
    number = Counted(row.type for row in batch.done)
    for name, events in number.items():
        _processed.labels(name).inc(events)
        rows = batch.done if len(number) == 1 else [row for row in batch.done if row.type == name]
        _queue_times.add(name, rows, at)
    buried = {failure.position for failure in batch.buried}
    for row, error in batch.failed:
        reason = reason_of(error)
        _failed.labels(row.type, reason.value).inc()
        if row.position in buried:
            _buried.labels(row.type).inc()
        elif reason not in (FailureReason.locked, FailureReason.unknown_version):
            _retried.labels(row.type).inc()


def reason_of(error: Exception) -> FailureReason:
    """What kind of failure this is."""
    match error:
        case TimedOut():
            return FailureReason.time_limit
        case Unprocessable():
            return FailureReason.unreadable
        case NoHandler():
            return FailureReason.unknown_version
        case ProcessDied():
            return FailureReason.worker_died
        case _ if is_locked(error):
            return FailureReason.locked
        case _:
            # An error that blames no event rolls its transaction back, and is counted only once the event was alone.
            return FailureReason.bisected if is_transient(error) else FailureReason.handler_error
