"""Schedules of jobs."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from arq.cron import next_cron

Job: TypeAlias = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
"""A job's function; it gets the worker's context as `ctx["worker"]`. Safe to stop at any point and to repeat."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """At these seconds of this minute and hour, in UTC; None means every minute or hour."""

    hour: int | None = None
    minute: int | None = None
    second: frozenset[int] = frozenset({0})

    def next_after(self, at: datetime) -> datetime:
        """The first time after `at`."""
        return next_cron(at.astimezone(UTC), hour=self.hour, minute=self.minute, second=set(self.second), microsecond=0)

    def __str__(self) -> str:
        seconds = sorted(self.second)
        if self.minute is None:
            listed = ", ".join(str(second) for second in seconds)
            return f"each minute, at {'second' if len(seconds) == 1 else 'seconds'} {listed}"
        at = f"{self.minute:02d}" + "".join(f":{second:02d}" for second in seconds if second)
        return f"each hour, at minute {at}" if self.hour is None else f"each day, at {self.hour:02d}:{at} UTC"


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """A job with its schedule. After `time_limit` seconds it is cancelled and counts as failed.

    With `at_start`, it becomes due whenever a worker starts.
    """

    job: Job
    schedule: Schedule
    time_limit: float = 300.0
    at_start: bool = False

    @property
    def name(self) -> str:
        return self.job.__name__
