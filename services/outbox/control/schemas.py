"""What operators ask about the outbox."""

from dataclasses import asdict, dataclass
from datetime import datetime
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
