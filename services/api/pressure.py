"""What this process refused or ran out of: counted for `GET /metrics`, and logged without flooding the log."""

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge

logger = logging.getLogger(__name__)

# Why a connection was refused or closed early, and how that is logged.
REASONS = {
    "capacity": "this process has reached its limit of open connections",
    "crowded_out": "its request was the oldest unfinished one when another connection needed its place",
    "head_time": "the head of a request did not arrive in time",
    "head_size": "the head of a request is too large",
    "malformed": "the input is not HTTP",
    "body_time": "the body of a request did not arrive in time",
    "body_size": "the body of a request has too many chunk extensions or trailers",
    "pipeline": "too many requests were pipelined",
    "reader": "the client does not read its reply",
}

registry = CollectorRegistry()
connections_open = Gauge("waybill_http_connections_open", "Connections that are open.", registry=registry)
_refused = Counter(
    "waybill_http_connections_refused",
    "Connections that were refused or closed early, by reason.",
    ("reason",),
    registry=registry,
)
_accept_errors = Counter(
    "waybill_http_accept_errors",
    "Failures to accept a connection for lack of file descriptors or memory.",
    registry=registry,
)
_out_of_memory = Counter("waybill_http_out_of_memory", "Requests that failed for lack of memory.", registry=registry)
_out_of_descriptors = Counter(
    "waybill_http_out_of_descriptors", "Requests that failed for lack of file descriptors.", registry=registry
)
# So that alerts see a zero before the first refusal.
_refused_by = {reason: _refused.labels(reason) for reason in REASONS}


class _Sparing:
    """Logs the first of many equal events immediately, and later ones at most every `seconds`, with their number."""

    def __init__(self, level: int, seconds: float = 10.0) -> None:
        self._level = level
        self._seconds = seconds
        self._silent_until = 0.0
        self._number = 0

    def log(self, message: str, *details: object) -> None:
        self._number += 1
        now = time.monotonic()
        if now < self._silent_until:
            return
        logger.log(self._level, f"{message} (%d since the last such line)", *details, self._number)
        self._silent_until, self._number = now + self._seconds, 0


_refused_log = {reason: _Sparing(logging.WARNING) for reason in REASONS}
_accept_log = _Sparing(logging.ERROR)
_descriptors_log = _Sparing(logging.ERROR)


def connection_refused(reason: str) -> None:
    """Count and log a connection that was refused or closed early; `reason` is one of `REASONS`."""
    _refused_by[reason].inc()
    _refused_log[reason].log("connection refused: %s", REASONS[reason])


def accept_failed(error: OSError) -> None:
    """Count and log that this process or the machine has no descriptor or memory left for new connections."""
    _accept_errors.inc()
    _accept_log.log("cannot accept connections: %s", error)


def out_of_memory() -> None:
    """Count and log a request that failed for lack of memory; the server logs where."""
    _out_of_memory.inc()
    logger.error("out of memory")


def out_of_descriptors(error: OSError) -> None:
    """Count and log a request that failed because no file or connection could be opened for it."""
    _out_of_descriptors.inc()
    _descriptors_log.log("out of file descriptors: %s", error)
