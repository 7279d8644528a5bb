"""What a reader of the log gets, and how far it has come."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has come. The fields are those of `LogConsumer`."""

    seen: str
    reading: str | None
    position: int
    until: int | None


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


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a consumer is: the number of unread events of any type, and the age in seconds of the oldest."""

    name: str
    updated_at: datetime
    events: int
    seconds: float
