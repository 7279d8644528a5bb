"""What a claim asks for, what it finds, and the outcome of processing it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias
from uuid import UUID

from services.fields import now
from services.logs import Shown
from services.outbox.events import Claimed, Event, NoHandler, Trace, Unprocessable
from services.outbox.models import FailureReason, Waits
from services.outbox.policy import RetryPolicy, describe, fingerprint, history_entry, is_locked

_UNKNOWN_AGAIN = 30.0
"""Seconds until an event of a version that the worker does not know is looked at again."""

_LOCKED_AGAIN = 2.0
"""Seconds until an event that needs a locked row is tried again."""


_NO_TRACE = Trace()


@dataclass(slots=True)
class Outcome:
    """What one transaction did. `more` says whether the next claim may find something immediately.

    `blocked` is the number of events that must wait until another worker's transaction ends.
    """

    processed: int = 0
    retried: int = 0
    buried: int = 0
    postponed: int = 0
    blocked: int = 0
    more: bool = False


class Span(NamedTuple):
    """Where a claim looks for one type: positions from `first` up to but not including `past`.

    `ready` and `due` are the maximum numbers of ready and due rows. Events of a version above `version` are left alone.
    """

    type: str
    first: int
    past: int
    ready: int
    due: int
    version: int


class ClaimedRow(NamedTuple):
    """An outbox row locked by this transaction, with its event from the log (None if the log no longer has it).

    `waited` says that it was not ready but waiting, and is now due; `begun` that an attempt was noted and never ended.
    If it is `blocked`, it must not run now, and comes without its event; if it `parks`, what blocks it is itself
    waiting or dead.
    """

    position: int
    event_id: UUID
    aggregate: str
    type: str
    attempts: int
    waited: bool
    begun: bool
    version: int | None
    payload: str | None
    request_id: str | None
    traceparent: str | None
    blocked: bool
    parks: bool

    def read(self, read: Callable[[str, int], Event]) -> Claimed[Any]:
        """The event in the form that its handler gets. Raises `Unprocessable`, and what the event's own code raises."""
        if self.payload is None or self.version is None:
            raise Unprocessable(f"event {self.event_id} is not in the log")
        trace = Trace(self.request_id, self.traceparent) if self.request_id or self.traceparent else _NO_TRACE
        event = read(self.payload, self.version)
        return Claimed(self.position, self.event_id, self.aggregate, self.attempts, event, trace)


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a claim's snapshot says about positions: which is the first ready one, and which may still appear.

    `last_taken` is the highest position that any transaction has taken, `transaction` is the id of the claim's own
    transaction, and every transaction with an id below `oldest_running` has ended. `backend` is the id of the server
    process, which is another one for each connection.
    """

    first_ready: int | None
    last_taken: int
    transaction: int
    oldest_running: int
    backend: int = 0


class Kind(NamedTuple):
    """What the events of a part of a batch have in common: their type, and whether they have failed before."""

    type: str
    has_failed: bool


Part: TypeAlias = tuple[Kind, list[ClaimedRow]]
"""Events that one call of their handler may process together."""


class Look(NamedTuple):
    """Whether a claim may find something now, and in how many seconds the next waiting event is due.

    `any_ready` says whether an event is ready, of whatever type and version.
    """

    ready: bool
    due_in: float | None
    backend: int
    any_ready: bool


def first_positions(events: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The lowest position of each aggregate, from pairs of aggregate and position, in the order of the aggregates."""
    first: dict[str, int] = {}
    for aggregate, position in events:
        first[aggregate] = min(position, first.get(aggregate, position))
    return dict(sorted(first.items()))


def separated(rows: Sequence[ClaimedRow]) -> tuple[ClaimedRow | None, list[ClaimedRow]]:
    """The first event that must be tried on its own, and those that can be processed together.

    An event whose attempt was noted is tried on its own, once no earlier one of its aggregate is among the rows.
    """
    alone: ClaimedRow | None = None
    together: list[ClaimedRow] = []
    reached: set[str] = set()
    held: set[str] = set()
    for row in rows:
        if row.begun or row.aggregate in held:
            if row.begun and alone is None and row.aggregate not in reached:
                alone = row
            held.add(row.aggregate)
        else:
            together.append(row)
        reached.add(row.aggregate)
    return alone, together


def divided(rows: Sequence[ClaimedRow]) -> tuple[list[ClaimedRow], list[ClaimedRow]]:
    """The rows of aggregates of which none has waited, and the others, which are more likely to fail."""
    waited = {row.aggregate for row in rows if row.waited}
    if not waited:
        return list(rows), []
    return [row for row in rows if row.aggregate not in waited], [row for row in rows if row.aggregate in waited]


class Work(NamedTuple):
    """A claimed row, and the event in the form that the handler gets."""

    row: ClaimedRow
    claimed: Claimed[Any]


FailedRow: TypeAlias = tuple[ClaimedRow, Exception]


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned. It processed the events in `done`, and returned an exception for each one in `failed`."""

    done: Sequence[ClaimedRow]
    failed: Sequence[FailedRow] = ()

    @classmethod
    def of(cls, works: Sequence[Work], verdicts: Sequence[Exception | None] | None) -> Self:
        """What a handler has done that returned these verdicts (`services.outbox.subscription.Verdicts`)."""
        if verdicts is None:
            return cls([work.row for work in works])
        told = list(zip((work.row for work in works), verdicts, strict=True))
        return cls(
            [row for row, error in told if error is None],
            [(row, error) for row, error in told if error is not None],
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler or the commit raised, and nothing takes effect."""

    error: Exception


class ProcessDied(Exception):
    """The error of an event that used up its attempts, the last of which ended with its worker process."""


@dataclass(slots=True)
class Batch:
    """The state of one transaction's work."""

    transaction: int
    careful: bool
    """Process in savepoints, so that a part that fails does not undo the rest."""
    counted: bool = False
    """Whether the attempt was counted before it began: the batch is a single event that may kill the process."""
    done: list[ClaimedRow] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    buried: list["Failure"] = field(default_factory=list)
    """Those of the failures that make a dead letter."""
    stopped: set[str] = field(default_factory=set)
    """Aggregates with a failed or released event: their later events of the batch wait."""
    released: bool = False
    """Whether some events were not processed, for lack of time or savepoints."""
    unfunded: Counter[str] = field(default_factory=Counter)
    """How many events of each type found no savepoint left, or no time."""
    deadline: float = 0.0
    """When to begin no further part, in seconds of the monotonic clock."""
    share: int = 0
    """The savepoints that each kind of event may use."""
    budget: dict[Kind, int] = field(default_factory=dict)
    """How many of these savepoints are left."""
    savepoints: int = 0
    noted: set[int] = field(default_factory=set)
    """Positions of the events whose attempts were noted before they began."""

    @property
    def left(self) -> list[int]:
        """Positions of events whose attempts were noted but did not begin."""
        return sorted(self.noted.difference(row.position for row in (*self.done, *(row for row, _ in self.failed))))

    @property
    def starved(self) -> set[str]:
        """Types with unfunded events of which no event was processed or has failed."""
        return self.unfunded.keys() - {row.type for row in self.done} - {row.type for row, _ in self.failed}

    def take(self, part: Done) -> None:
        """Add the result of a handler."""
        self.done += part.done
        for row, error in part.failed:
            self.fail(row, error)

    def fail(self, row: ClaimedRow, error: Exception) -> None:
        """Add a failed event, and stop its aggregate."""
        self.failed.append((row, error))
        self.stopped.add(row.aggregate)

    def release(self, works: Sequence[Work]) -> None:
        """Leave these events to a later transaction."""
        self.stopped.update(work.row.aggregate for work in works)
        self.released = True


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be processed, and when to try it again (`delay` in seconds).

    `attempt` is the number of the attempt that failed, from 1, and `error` its traceback. `entry` is a JSON object for
    the event's history, or None to leave it out. `counts` is what to add to the number of attempts, and `blocks`
    whether, as a dead letter, it blocks the later events of its aggregate. `is_attempt` is false if another transaction
    or another release is to blame.
    """

    position: int
    aggregate: str
    attempt: int
    error: str
    fingerprint: str
    entry: str | None
    delay: float
    waits: Waits
    counts: int
    is_attempt: bool
    blocks: bool
    reason: FailureReason

    @classmethod
    def of(
        cls,
        row: ClaimedRow,
        error: Exception,
        reason: FailureReason,
        policy: RetryPolicy,
        *,
        blocks: bool,
        counted: bool = False,
    ) -> Self:
        """Make the failure to store. `policy` is the subscription's; `blocks` is whether a dead letter would block.

        `counted` says that the attempt was counted before it began.
        """
        locked, unknown = is_locked(error), isinstance(error, NoHandler)
        is_attempt = not (locked or unknown)
        delay = policy.delay(row.attempts)
        if locked:
            delay = _LOCKED_AGAIN
        elif unknown:
            delay = _UNKNOWN_AGAIN
        return cls(
            position=row.position,
            aggregate=row.aggregate,
            attempt=row.attempts + 1,
            error=describe(error),
            fingerprint=fingerprint(error),
            entry=None if locked else history_entry(error, row.attempts + 1, now(), reason),
            delay=delay,
            waits=Waits.unknown if unknown else Waits.retry,
            counts=is_attempt - counted,
            is_attempt=is_attempt,
            blocks=blocks,
            reason=reason,
        )

    def told(self, row: ClaimedRow, error: Exception, *, dead: bool, left_out: int) -> str:
        """The message for the log. `left_out` is the number of failures like this one that were not logged."""
        event = f"event {row.event_id} ({row.type}) of {row.aggregate}"
        fate = ", now a dead letter" if dead else ""
        more = f" (and {left_out} more like it since this was last logged)" if left_out else ""
        return f"{event} failed, attempt {self.attempt}{fate}: {Shown(error)!r}{more}"
