"""What the rate limits of this process did, for `GET /metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.api.rate_classes import LIMITED, RateClass

registry = CollectorRegistry()
_refused = Counter(
    "waybill_rate_limited_requests",
    "Requests that were refused with 429 because their caller had reached a limit, by class.",
    ("class",),
    registry=registry,
)
trips = Counter(
    "waybill_rate_limit_trips",
    "Trips to Redis to take a part of a caller's limit. Most requests need none.",
    registry=registry,
)
shared = Gauge(
    "waybill_rate_limit_shared",
    "Whether the processes count together, in Redis. 0: this process counts alone, against its share of the limits.",
    registry=registry,
)
shared.set(1)
# So that alerts see a zero before the first refusal.
refused_by: dict[RateClass, Counter] = {kind: _refused.labels(kind.value) for kind in LIMITED}
