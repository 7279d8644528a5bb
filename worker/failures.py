"""What keeps failing in this worker, for its health check."""

from dataclasses import dataclass
from time import monotonic
from typing import Any

from services.fields import made_storable
from services.outbox.summary import summary

_LONGEST_ERROR = 500


@dataclass(slots=True)
class _Failing:
    since: float
    times: int
    error: str


class Failures:
    """Consecutive failures of each part of the worker: a part's first success ends them."""

    def __init__(self) -> None:
        self._parts: dict[str, _Failing] = {}

    def failed(self, part: str, error: BaseException) -> None:
        """Count a failure. `part` says in words what failed, such as `every batch`."""
        found = self._parts.setdefault(part, _Failing(monotonic(), 0, ""))
        found.times += 1
        found.error = made_storable(summary(error))[:_LONGEST_ERROR]

    def succeeded(self, part: str) -> None:
        """The part works."""
        self._parts.pop(part, None)

    def report(self) -> dict[str, Any] | None:
        """The part that has failed for the longest time, with the seconds since its first failure; None if all work."""
        if not self._parts:
            return None
        part, found = min(self._parts.items(), key=lambda one: one[1].since)
        seconds = round(monotonic() - found.since, 1)
        return {"part": part, "seconds": seconds, "times": found.times, "error": found.error}
