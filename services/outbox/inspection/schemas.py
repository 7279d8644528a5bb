"""Groups of failures, and events that wait."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.outbox.models import FailureReason

BUCKETS = 24
"""How many spans of time the history of a group has."""


class Window(StrEnum):
    """How far back the history of a group goes."""

    hour = "hour"
    day = "day"
    week = "week"

    @property
    def span(self) -> timedelta:
        """How long one bucket is."""
        return {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}[self.value] / BUCKETS


@dataclass(frozen=True, slots=True)
class History:
    """How many of a group's dead letters died in each span of time, the oldest first.

    The first span begins at `starts_at`, and each lasts `seconds`. A count of `most` means that many or more.
    """

    starts_at: datetime
    seconds: float
    letters: Sequence[int]
    most: int


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters with the same error from the same place. `type`, `reason` and `message` are those of the latest one.

    The counts are bounded: `letters_is_more` says that there are more letters, and then `aggregates` is what the
    counted ones have. `position` is that of the latest letter. `reason` is null if a release stored it that did not
    record reasons.
    """

    fingerprint: str
    letters: int
    letters_is_more: bool
    aggregates: int
    first_at: datetime
    last_at: datetime
    type: str
    reason: FailureReason | None
    message: str
    position: int
    history: History


@dataclass(frozen=True, slots=True)
class GroupsWanted:
    """Which groups: those whose latest letter has this type and this reason."""

    type: str | None = None
    reason: FailureReason | None = None
    window: Window = Window.day

    def scope(self) -> list[str]:
        """What a cursor belongs to."""
        return ["dead-letter-groups", self.type or "", self.reason or ""]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error, as its latest dead letter shows it."""

    fingerprint: str
    position: int
    type: str
    reason: FailureReason | None
    last_at: datetime


class WaitsFor(StrEnum):
    """Why an event waits, as operators filter by it."""

    ready = "ready"
    """It waits for a worker to claim it."""
    paused = "paused"
    """It is ready, and an operator has paused its type."""
    retry = "retry"
    """It failed or was replayed, and will be tried again."""
    behind = "behind"
    """An earlier event of its aggregate waits or is a dead letter."""
    begun = "begun"
    """An attempt has begun; if its process was killed, the event is tried again on its own."""
    unknown = "unknown"
    """No live worker has a handler for its type and version."""
    deferred = "deferred"
    """Its writer asked for a later time."""


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that has not been processed. `message` and `failed_at` tell of its latest failure.

    `until` is when it comes due; null if it is ready, or waits until an earlier event is out of the way.
    """

    position: int
    event_id: UUID
    aggregate: str
    type: str
    reason: WaitsFor
    until: datetime | None
    attempts: int
    message: str | None
    failed_at: datetime | None
