"""What an event is: a typed fact about one aggregate."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError


class Unprocessable(Exception):
    """Raised for an event that no retry can save: it becomes a dead letter at once."""


class NoHandler(Exception):
    """This worker does not know the event's type or version. Another, of a newer release, may: the event waits."""


class Locked(Exception):
    """What the event needs is locked by another transaction: it is tried again soon, and no attempt is counted.

    A handler may return this for single events. A lock that is not granted in time counts as this for the event, too.
    """


class _Payload(RootModel[dict[str, Any]]):
    """Any JSON object."""


class Event(BaseModel):
    """A fact, named in the past tense.

    `queued` says whether a worker has work to do on it; an event that is not queued is only written to the log.
    A change of the payload that old events do not fit comes with a new `version` and an `upgraded` that reads the old.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]
    version: ClassVar[int] = 1
    queued: ClassVar[bool] = False

    @property
    @abstractmethod
    def aggregate(self) -> str:
        """What the event is about, as `kind/id`; its events are processed in the order they were written."""

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """The payload of an earlier version in the shape of this one. Raises `Unprocessable` where there is no way."""
        raise Unprocessable(f"{cls.type!r} of version {version} is not read as version {cls.version}: {payload}")

    @classmethod
    def reader(cls) -> Callable[[str, int], Self]:
        """What gives the event that was written as a payload (JSON) under a version.

        For many events: what it needs of the class is looked up once. It raises `NoHandler` for a version newer than
        this class, `Unprocessable` for a payload that does not fit.
        """
        known = cls.version
        # The validator itself: `model_validate_json` spends as much on looking at its options.
        validate = cls.__pydantic_validator__.validate_json

        def read(payload: str, version: int) -> Any:
            try:
                if version == known:
                    return validate(payload)
                if version > known:
                    raise NoHandler(f"this worker knows version {known} of {cls.type!r}, not {version}")
                return cls.model_validate(cls.upgraded(_Payload.model_validate_json(payload).root, version))
            except ValidationError as error:
                raise Unprocessable(f"the payload is no {cls.type!r} of version {version}: {error}") from error

        return read


class Registry(Mapping[str, type[Event]]):
    """The event types that a process knows, by name. Raises `ValueError` where a name is given twice."""

    def __init__(self, events: Sequence[type[Event]]) -> None:
        self._events = {event.type: event for event in events}
        twice = {event.type for event in events if sum(other.type == event.type for other in events) > 1}
        if twice:
            raise ValueError(f"event types named twice: {', '.join(sorted(twice))}")

    def __getitem__(self, name: str) -> type[Event]:
        return self._events[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)


class Trace(NamedTuple):
    """Where an event came from: the request's id and its W3C trace context."""

    request_id: str | None = None
    traceparent: str | None = None


class Recorded(NamedTuple):
    """An event that a unit of work is going to write. Deferred where `available_at` is given."""

    event_id: UUID
    event: Event
    trace: Trace
    available_at: datetime | None = None


EventT = TypeVar("EventT", bound=Event)


class Claimed(NamedTuple, Generic[EventT]):
    """An event that this transaction is processing. `attempts` counts the failed ones before this one.

    What a handler records because of it carries its `trace`.
    """

    position: int
    event_id: UUID
    aggregate: str
    attempts: int
    event: EventT
    trace: Trace
