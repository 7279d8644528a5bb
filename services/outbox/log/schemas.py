"""What a reader of the log gets, and how far it has come."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.fields import time_of

FAILING = 2
"""The number of consecutive failures from which the health check reports a consumer."""

LATE = 120.0
"""Seconds for which an event may be unread while no worker runs the consumer: twice a lease."""


class Start(StrEnum):
    """Where a consumer starts."""

    beginning = "beginning"
    """At the oldest event that the log still holds."""
    now = "now"
    """At the first event that is committed from now on."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has come. The fields are those of `LogConsumer`."""

    seen: str
    reading: str | None
    position: int
    until: int | None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a reader has come who keeps that in memory. It names transactions, so it ends with the timeline."""

    cursor: Cursor
    timeline: str


@dataclass(frozen=True, slots=True)
class Look(Cursor):
    """How far a consumer has come, and whether there may be `news`: something that it has not read."""

    news: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to run a consumer, for `seconds` after each claim or renewal."""

    owner: UUID
    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The new part of the log: positions `first` to at most `last`, as visible in `snapshot`.

    `own` is the id of the transaction that took the snapshot.
    """

    snapshot: str
    own: int
    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """How far the database of a sink has come: after the read with this number and id of the `series`."""

    series: UUID
    number: int
    read_id: UUID | None
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class SinkState:
    """What was handed out to a sink (see `LogSink`). `news` is whether there is something new after its place.

    `failed` is whether the last attempt to run the consumer has failed.
    """

    series: UUID
    reads: int
    last_read: UUID | None
    stored: int
    failed: bool
    news: bool


@dataclass(frozen=True, slots=True)
class Extent:
    """What the log holds: its lowest event id, its lowest and its highest position; None if it is empty."""

    oldest: UUID | None
    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as the log holds it."""

    position: int
    id: UUID
    type: str
    version: int
    aggregate: str
    payload: dict[str, Any]
    occurred_at: datetime
    request_id: str | None
    traceparent: str | None
    actor: str | None
    """Who did it, such as `user:12`; None in events of releases that did not record it."""

    @property
    def made_at(self) -> datetime:
        """When the event was made, to the millisecond, by the database's clock: the month that it is stored in."""
        return time_of(self.id)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a consumer is, and who runs it.

    `events` is the number of unread events of any type, `seconds` the age of the oldest. `state` is `running`,
    `waiting` (for a worker), `failing`, `paused`, or `manual` if no worker has ever run it. Of what it is reading now,
    it has read up to `position`, and `until` is the last one; None if it has read all of it.
    """

    name: str
    updated_at: datetime
    events: int
    seconds: float
    state: str
    host: str | None
    pid: int | None
    failed_in_a_row: int
    error: str | None
    retry_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    position: int
    until: int | None

    @property
    def complaint(self) -> str | None:
        """What the health check reports about it; None if it is healthy."""
        if self.state == "failing" and self.failed_in_a_row >= FAILING:
            return f"it has failed {self.failed_in_a_row} times in a row: {self.error}"
        if self.state == "waiting" and self.seconds > LATE:
            return f"its oldest unread event is {self.seconds:.0f} s old, and no worker runs it"
        return None
