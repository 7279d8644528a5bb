"""What operators ask about the outbox, and what workers know of each other."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


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
