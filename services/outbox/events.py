"""What an event is: a typed fact about one aggregate."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Event(BaseModel):
    """A fact, named in the past tense.

    `queued` says whether a worker has work to do on it; an event that is not queued is only written to the log.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]
    version: ClassVar[int] = 1
    queued: ClassVar[bool] = False

    @property
    @abstractmethod
    def aggregate(self) -> str:
        """What the event is about, as `kind/id`; its events are processed in the order they were written."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Where an event came from: the request's id and its W3C trace context."""

    request_id: str | None = None
    traceparent: str | None = None


EventT = TypeVar("EventT", bound=Event)


@dataclass(frozen=True, slots=True)
class Claimed(Generic[EventT]):
    """An event that this transaction is processing. `attempts` counts the failed ones before this one.

    What a handler records because of it carries its `trace`.
    """

    position: int
    event_id: UUID
    aggregate: str
    attempts: int
    event: EventT
    trace: Trace
