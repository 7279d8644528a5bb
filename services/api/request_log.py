"""One line in the log for each request: what it asked for, how it was answered, who sent it, and how long it took.

It contains neither the path nor the query nor any header but `X-Request-Id` and the id in `traceparent`: those may hold
personal data, and a client could write what it likes there.
"""

import logging
import random
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from services.acting import Acting
from services.logs import log_quickly
from services.settings import Settings

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/internal/scaling"})
"""The paths that load balancers, scrapers and autoscalers ask for."""

_ID = re.compile(r"[0-9A-Fa-f-]{1,36}", re.ASCII)


class RequestLog:
    """Writes the lines: for one request in `one_in`, chosen by chance (0: for none), and for each that fails with 5xx.

    Requests of load balancers, scrapers and autoscalers (`/healthz`, `/readyz`, `/metrics`, `/internal/scaling`) get
    none, unless they are to be logged like others.
    """

    def __init__(self, one_in: int = 1, *, probes: bool = False) -> None:
        self._one_in = one_in
        self._left_out = frozenset() if probes else PROBES

    @classmethod
    def from_settings(cls, settings: Settings) -> "RequestLog":
        return cls(settings.log_one_request_in, probes=settings.log_probes)

    def write(
        self,
        scope: Scope,
        route: str,
        status: int | None,
        seconds: float,
        *,
        received: int,
        sent: int,
        location: bytes | None,
    ) -> None:
        """Write the line of a request that has ended; `status` is None if it did so without a reply.

        `received` and `sent` are the bytes of the bodies. `location` is that of what the request has made.
        """
        failed = status is None or status >= 500
        if route in self._left_out or not (failed or self._is_chosen()):
            return
        method = scope["method"]
        fields: dict[str, object] = {
            "method": method if method in METHODS else "other",
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "bytes_in": received,
            "bytes_out": sent,
            **ids_of(scope.get("state", {})),
        }
        if location is not None:
            fields["location"] = location.decode("latin-1")
        log_quickly(logger, logging.WARNING if failed else logging.INFO, "request", fields)

    def _is_chosen(self) -> bool:
        return self._one_in == 1 or (self._one_in > 0 and random.random() * self._one_in < 1)  # noqa: S311


def ids_of(state: Mapping[str, Any]) -> dict[str, object]:
    """The request's id, that of its trace, and who sent it, as far as they are known."""
    ids: dict[str, object] = {"request_id": state.get("request_id")}
    traceparent: str | None = state.get("traceparent")
    if traceparent is not None:
        ids["trace_id"] = traceparent[3:35]
    acting: Acting | None = state.get("acting")
    if acting is not None and acting.actor is not None:
        ids["caller"] = acting.actor
    return ids


def context_of(scope: Scope) -> dict[str, object]:
    """What every line that is logged while this request is handled says about it: its ids, and those in its path.

    What is not an id of ours is left out: a path contains whatever a client has put there.
    """
    ids = ids_of(scope.get("state", {}))
    for name, value in scope.get("path_params", {}).items():
        if name.endswith("_id") and _ID.fullmatch(str(value)):
            ids[name] = str(value)
    return ids
