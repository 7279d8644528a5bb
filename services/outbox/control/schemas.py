"""What operators ask about the outbox, and what workers know of each other."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from services.outbox.models import FailureReason

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
class OtherWorker:
    """Another worker, as its row tells: `process` identifies it on its host, `silent` is the seconds since its beat."""

    id: UUID
    host: str
    pid: int
    process: dict[str, Any] | None
    silent: float


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
