"""What a reader of the log is given, and how far it has come."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has come; the fields are those of the table."""

    seen: str
    reading: str | None
    position: int
    until: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """What the log holds that is new: from `first` to at most `last`, as `snapshot` shows it (`own`: who looks)."""

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
    """How far behind a consumer is: unread events, whatever their type, and the seconds since the oldest of them."""

    name: str
    updated_at: datetime
    events: int
    seconds: float
