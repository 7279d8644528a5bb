"""Events: typed facts, each about one aggregate."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from services.logs import Shown


class Unprocessable(Exception):
    """Raised for an event that no retry can help. It becomes a dead letter immediately."""


class NoHandler(Exception):
    """This worker does not know the event's type or version. A worker of a newer release may, so the event waits."""


class Locked(Exception):
    """Another transaction has locked what the event needs. It is tried again soon, and no attempt is counted.

    A handler may return this for individual events. A lock timeout is treated in the same way.
    """


class Personal:
    """Marks a field of an event that identifies a person, or holds what someone wrote in their own words."""


PERSONAL = Personal()

HIDDEN = "(personal)"
"""What is shown instead of a value that is personal."""


class _Payload(RootModel[dict[str, Any]]):
    """Any JSON object."""


class Event(BaseModel):
    """A fact, named in the past tense.

    `queued` says whether a worker processes it; an event that is not queued is only written to the log.

    A field with a default can be added as it is: workers of the release before ignore it. For any other change of the
    payload, increase `version` and override `upgraded` to read the old payload. Workers of the release before leave
    events of a newer version to those that know it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]
    version: ClassVar[int] = 1
    queued: ClassVar[bool] = False

    @property
    @abstractmethod
    def aggregate(self) -> str:
        """What the event is about, as `kind/id`. An aggregate's events are processed in the order they were written."""

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Convert the payload of an earlier version to this one. Raises `Unprocessable` if that is not possible."""
        change = f"from version {version} to version {cls.version}"
        raise Unprocessable(f"cannot upgrade {cls.type!r} {change}: its fields are {', '.join(sorted(payload))}")

    @classmethod
    def reader(cls) -> Callable[[str, int], Self]:
        """Return a function that reads a JSON payload of a given version into an event.

        Meant for reading many events: what it needs from the class is looked up once. It ignores fields that the class
        does not have. It raises `NoHandler` if the version is newer than this class, and `Unprocessable` if the payload
        is not valid.
        """
        known = cls.version
        # The validator itself: `model_validate_json` spends as much time again on handling its options.
        validate = cls.__pydantic_validator__.validate_json

        def read(payload: str, version: int) -> Any:
            try:
                if version == known:
                    return validate(payload, extra="ignore")
                if version > known:
                    raise NoHandler(f"this worker knows version {known} of {cls.type!r}, not {version}")
                old = _Payload.model_validate_json(payload).root
                return cls.model_validate(cls.upgraded(old, version), extra="ignore")
            except ValidationError as error:
                raise Unprocessable(
                    f"the payload is not a valid {cls.type!r} of version {version}: {Shown(error)}"
                ) from error

        return read


def defined(base: type[Event] = Event) -> Iterator[type[Event]]:
    """Every event class below `base` in the modules imported so far. One without a type is only a base of others."""
    for kind in base.__subclasses__():
        if hasattr(kind, "type"):
            yield kind
        yield from defined(kind)


def personal_fields(event: type[Event]) -> frozenset[str]:
    """The fields that are marked as `PERSONAL`."""
    return frozenset(name for name, one in event.model_fields.items() if PERSONAL in one.metadata)


def shown_payload(event_type: str, payload: Mapping[str, Any] | None, *, whole: bool) -> dict[str, Any] | None:
    """The payload as it is shown: unless `whole`, without the values of fields that are personal.

    Of a type that this process does not know, no value is shown then.
    """
    if payload is None or whole:
        return None if payload is None else dict(payload)
    known = next((kind for kind in defined() if kind.type == event_type), None)
    hidden = payload.keys() if known is None else personal_fields(known) | (payload.keys() - known.model_fields.keys())
    return {name: HIDDEN if name in hidden else value for name, value in payload.items()}


class Registry(Mapping[str, type[Event]]):
    """The event types that a process knows, by name. Raises `ValueError` if two of them have the same name."""

    def __init__(self, events: Sequence[type[Event]]) -> None:
        self._events = {event.type: event for event in events}
        twice = {event.type for event in events if sum(other.type == event.type for other in events) > 1}
        if twice:
            raise ValueError(f"duplicate event types: {', '.join(sorted(twice))}")

    def __getitem__(self, name: str) -> type[Event]:
        return self._events[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)


class Trace(NamedTuple):
    """Where an event came from: the request's id and its W3C trace context, and who acts (`services/acting.py`)."""

    request_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None


class Recorded(NamedTuple):
    """An event that a unit of work is going to write. It is deferred if `available_at` is set."""

    event_id: UUID
    event: Event
    trace: Trace
    available_at: datetime | None = None


EventT = TypeVar("EventT", bound=Event)


class Claimed(NamedTuple, Generic[EventT]):
    """An event that this transaction is processing. `attempts` is the number of attempts that failed before this one.

    Events that the handler records because of it carry its `trace`, with the handler as the actor.
    """

    position: int
    event_id: UUID
    aggregate: str
    attempts: int
    event: EventT
    trace: Trace
