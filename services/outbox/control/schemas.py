"""What operators ask about the outbox, and what workers know of each other."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from services.outbox.models import FailureReason, WorkerWish

NOT_TO_USE = ("enable_seqscan", "enable_bitmapscan", "enable_sort")
"""With outdated statistics, the planner would read and sort all rows instead of the first ones of an index."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects dead letters: those that match every field that is set."""

    position: int | None = None
    event_id: UUID | None = None
    type: str | None = None
    aggregate: str | None = None
    fingerprint: str | None = None
    died_from: datetime | None = None
    died_before: datetime | None = None
    reason: FailureReason | None = None
    positions: Sequence[int] | None = None

    @property
    def is_everything(self) -> bool:
        return all(value is None for value in asdict(self).values())


@dataclass(frozen=True, slots=True)
class By:
    """Who does it, and why. Both are recorded in the audit trail."""

    actor: str
    reason: str = ""

    @classmethod
    def user(cls, user_id: int, reason: str) -> "By":
        """A user, through the API or the console."""
        return cls(f"user/{user_id}", reason)


class Asked(StrEnum):
    """What an operator asks of a worker: to take nothing new, to work again, or to shut down."""

    quiet = "quiet"
    work = "work"
    stop = "stop"

    @property
    def wish(self) -> WorkerWish | None:
        """What is stored of it; None takes the wish back."""
        return None if self is Asked.work else WorkerWish(self.value)


@dataclass(frozen=True, slots=True)
class Head:
    """What identifies a dead letter. `message` is the summary of its error."""

    position: int
    event_id: UUID
    aggregate: str
    type: str
    fingerprint: str
    died_at: datetime
    message: str


class Letter(Protocol):
    """What a discard has to know of a dead letter."""

    @property
    def position(self) -> int: ...
    @property
    def event_id(self) -> UUID: ...
    @property
    def aggregate(self) -> str: ...
    @property
    def type(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Slice:
    """What one transaction has done, or would do.

    `matching` dead letters were selected before it, and `done` of them, those in `letters`, have been dealt with. The
    first number stops at 10,000, and `matching_is_more` says that there are more. If there are `more` after those in
    `letters`, continue in the next transaction after the position `last`.
    """

    matching: int
    matching_is_more: bool
    done: int
    letters: Sequence[Head]
    more: bool
    last: int


@dataclass(frozen=True, slots=True)
class TypeState:
    """One event type. Counts stop at 10,000; `ready_is_more`, `waiting_is_more` and `dead_letters_is_more` say that
    there are more.

    `reasons` counts the events by why they wait, and `due` those that a worker can process now: of each reason, 2,000
    means that many or more. `workers` is the number of live workers that handle it; `oldest_ready_seconds` is the age
    of the first ready event.
    """

    type: str
    ready: int
    ready_is_more: bool
    waiting: int
    waiting_is_more: bool
    oldest_ready_seconds: float | None
    paused: bool
    max_batches: int | None
    changed_at: datetime | None
    changed_by: str | None
    dead_letters: int
    dead_letters_is_more: bool
    workers: int
    reasons: Mapping[str, int]
    due: int


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker process, as it last reported itself. `complaint` is the result of its health check, None if healthy.

    `silent_seconds` is the time since its last heartbeat, `stuck_seconds` since its slowest busy loop made progress.
    `asked` is what an operator asked of it, which it does from its next heartbeat on.
    """

    id: UUID
    host: str
    pid: int
    started_at: datetime
    beat_at: datetime
    progress_at: datetime
    silent_seconds: float
    stuck_seconds: float
    complaint: str | None
    report: dict[str, Any]
    asked: WorkerWish | None
    asked_by: str | None


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """Another worker, as its row tells: `process` identifies it on its host, `silent` is the seconds since its beat."""

    id: UUID
    host: str
    pid: int
    process: dict[str, Any] | None
    silent: float


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker learns when it writes its row: others, what was asked of it, and whether there are bulk actions."""

    others: Sequence[OtherWorker]
    asked: WorkerWish | None
    has_bulk_actions: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many events of one type wait, by reason, and how many a worker can process now. Counts are bounded."""

    type: str
    reasons: Mapping[str, int]
    due: int


def waiting_of(rows: Iterable[Mapping[str, Any]]) -> list[Waiting]:
    """From counts by type and reason. Of a paused type, no event is due, and those that were are called `paused`."""
    reasons: dict[str, Counter[str]] = {}
    due: Counter[str] = Counter()
    for row in rows:
        found = reasons.setdefault(row["type"], Counter())
        ready = row["due"] if row["paused"] else 0
        found["paused"] += ready
        found[row["reason"]] += row["events"] - ready
        due[row["type"]] += 0 if row["paused"] else row["due"]
    return [
        Waiting(name, {reason: n for reason, n in found.items() if n}, due[name])
        for name, found in sorted(reasons.items())
    ]
