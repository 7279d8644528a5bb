"""How long requests take in this process, for `GET /metrics`."""

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import Scope

from services.api.request_log import METHODS

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestTimes:
    """Counts and durations of this process's requests, by method, route and status class.

    Values that clients make up do not become labels: a path without a route is `unmatched`, an unknown method `other`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._histogram = Histogram(
            "waybill_http_request_duration_seconds",
            "Time from a request's head to the end of its reply.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        # Looking a child up by its labels costs more than counting in it.
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        key = (method if method in METHODS else "other", route, status // 100)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._histogram.labels(key[0], key[1], f"{key[2]}xx")
        child.observe(seconds)


def route_path(scope: Scope) -> str:
    """The route as it is declared, such as `/v1/orders/{order_id}`."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "unmatched"
    # A route does not know the prefix that its router was included with.
    return f"/v1{path}" if scope["path"].startswith("/v1/") else str(path)
