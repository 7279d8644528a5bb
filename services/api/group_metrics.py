"""What the groups of this process did, for `GET /metrics`."""

from prometheus_client import CollectorRegistry, Counter, Histogram

registry = CollectorRegistry()
sizes = Histogram(
    "waybill_group_requests",
    "Requests in a group that was carried out in one transaction.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    registry=registry,
)
waited = Histogram(
    "waybill_group_wait_seconds",
    "How long a request waited for its group to begin.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    registry=registry,
)
splits = Counter(
    "waybill_group_splits",
    "Groups that were rolled back and tried again in parts.",
    registry=registry,
)
refused = Counter(
    "waybill_group_refused",
    "Requests that were refused with 503 because they would have waited too long for a group.",
    registry=registry,
)
