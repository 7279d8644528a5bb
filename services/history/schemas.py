"""What goes into the history, and what comes out of it."""

from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Self

from services.fields import Schema


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker has done: since it started, or between two moments."""

    processed: int = 0
    retried: int = 0
    buried: int = 0
    batches: int = 0
    rolled_back: int = 0
    rung: int = 0
    polled: int = 0
    queued: int = 0
    queue_seconds: float = 0.0

    def since(self, before: Self) -> "Done":
        """What has been done since then."""
        return Done(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


class Period(StrEnum):
    """How much of the history a chart shows."""

    minutes_5 = "5m"
    minutes_15 = "15m"
    hour = "1h"
    hours_6 = "6h"
    day = "24h"


LENGTHS: dict[Period, tuple[int, int]] = {
    Period.minutes_5: (300, 10),
    Period.minutes_15: (900, 10),
    Period.hour: (3600, 30),
    Period.hours_6: (21_600, 120),
    Period.day: (86_400, 600),
}
"""In seconds: how long each period is, and the step between two points."""


class History(Schema):
    """The recent past, oldest point first. Each list has a value for each of `times` (seconds since the epoch, the end
    of a step of `step` seconds); null where no worker was running.

    Rates are events in a second: `recorded` for workers to process, `processed`, and `failed` attempts (tried again or
    buried). `queue_seconds` is the average time from when an event was recorded until the commit of its processing,
    `batch_events` the average size of a batch. `waiting` and `dead_letters` stop at 10,000.
    """

    period: Period
    step: int
    times: list[float]
    recorded: list[float | None]
    processed: list[float | None]
    failed: list[float | None]
    waiting: list[int | None]
    oldest_due_seconds: list[float | None]
    dead_letters: list[int | None]
    queue_seconds: list[float | None]
    batch_events: list[float | None]
    workers: list[int | None]
