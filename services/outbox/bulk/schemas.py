"""What a bulk action selects, and what operators are shown before they start one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from services.fields import Schema
from services.outbox.bulk.models import BulkKind
from services.outbox.models import FailureReason, Waits
from services.totals import Total

OF_LETTERS = frozenset({"type", "aggregate", "fingerprint", "died_from", "died_before", "failure_reason"})
"""The fields of a filter for dead letters."""

OF_WAITING = frozenset({"type", "aggregate", "fingerprint", "waits"})
"""The fields of a filter for events that wait."""

SELECTABLE = frozenset({Waits.retry, Waits.unknown, Waits.asked})
"""What a bulk action may select events by. Those that are behind another event depend on that one."""


@dataclass(frozen=True, slots=True)
class BulkFilter:
    """Selects events: those that match every field that is set.

    Of events that wait, it selects those that failed (`retry`) or that no worker knew (`unknown`), unless `waits` says
    which: deferred events (`asked`) must be asked for.
    """

    type: str | None = None
    aggregate: str | None = None
    fingerprint: str | None = None
    died_from: datetime | None = None
    died_before: datetime | None = None
    waits: Waits | None = None
    failure_reason: FailureReason | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def stored(self) -> dict[str, Any]:
        """The same, as JSON."""
        stored: dict[str, Any] = to_jsonable_python(self.given)
        return stored

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "BulkFilter":
        """From what `stored` returned. Raises `ValidationError`."""
        return _FILTER.validate_python(stored)


_FILTER = TypeAdapter(BulkFilter)


class BulkWanted(Schema):
    """What an operator starts."""

    action: BulkKind
    filter: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk over events is: after this one. Dead letters are ordered by position alone."""

    position: int = 0
    aggregate: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """How far an action reaches: up to this place, and not to dead letters that died at this time or later."""

    place: Place
    at: datetime


@dataclass(frozen=True, slots=True)
class Claimed:
    """An action that a worker has locked for its next chunk; `acting` and `user_id` say on whose behalf."""

    id: UUID
    kind: BulkKind
    filter: BulkFilter
    reason: str
    actor: str
    acting: str | None
    user_id: int | None
    tries: int
    place: Place
    bound: Bound


@dataclass(frozen=True, slots=True)
class Examined:
    """A stretch of a walk: how many events it looked at, which of them match, and the last one; None at the end."""

    number: int
    matching: Sequence[int]
    last: Place | None


@dataclass(frozen=True, slots=True)
class Taken:
    """An event that a chunk has locked."""

    position: int
    event_id: UUID
    aggregate: str
    type: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the events that match. `message` is the summary of its latest error, if it has failed."""

    position: int
    event_id: UUID
    aggregate: str
    type: str
    fingerprint: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Preview:
    """How many events an action would be about, and the first of them in its order.

    No more than 10,000 events are examined for it: `total.precision` says whether the number is exact or an estimate.
    """

    total: Total
    sample: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one chunk has done."""

    examined: int
    done: int
    failed: int
    skipped: int
    error: str | None
    place: Place | None
    """Where the next chunk begins; None if nothing is left."""
