"""What a claim asks for, what it finds, and the outcome of processing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias
from uuid import UUID

from services.fields import now
from services.outbox.events import Claimed, NoHandler, Unprocessable
from services.outbox.models import Waits
from services.outbox.policy import RetryPolicy, describe, fingerprint, history_entry, is_locked

_UNKNOWN_AGAIN = 30.0
"""Seconds until an event of a version that the worker does not know is looked at again."""

_LOCKED_AGAIN = 2.0
"""Seconds until an event that needs a locked row is tried again."""


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

    `ready` and `due` are the maximum numbers of ready and due rows.
    """

    type: str
    first: int
    past: int
    ready: int
    due: int


class ClaimedRow(NamedTuple):
    """An outbox row locked by this transaction, with its event from the log (None if the log no longer has it).

    `waited` says that it was not ready but waiting, and is now due. If it is `blocked`, it must not run now; if it
    `parks`, what blocks it is itself waiting or dead.
    """

    position: int
    event_id: UUID
    aggregate: str
    type: str
    attempts: int
    waited: bool
    version: int | None
    payload: str | None
    request_id: str | None
    traceparent: str | None
    blocked: bool
    parks: bool


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


class Look(NamedTuple):
    """Whether a claim may find something now, and in how many seconds the next waiting event is due."""

    ready: bool
    due_in: float | None
    backend: int


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


@dataclass(frozen=True, slots=True)
class Ended:
    """The handler committed or rolled back itself. Part of its work may have taken effect, so no retry is safe.

    `given` are the events that it got, `done` those that were processed before them in the `transaction` that it ended.
    The events in `given` fail with `error`.
    """

    error: "TransactionEnded"
    transaction: int
    done: Sequence[ClaimedRow]
    given: Sequence[ClaimedRow]


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler or the commit raised, and nothing takes effect.

    In a transaction without savepoints this is not certain: after an error, the server does not say whether this is
    still the transaction that claimed the events. If that transaction turns out to have committed, the handler ended
    it, and the outcome is `if_committed`.
    """

    error: Exception
    if_committed: Ended | None = None


class TransactionEnded(Unprocessable):
    """The error of events whose handler ended the transaction. It is stored with them, and never raised."""


@dataclass(slots=True)
class Batch:
    """The state of one transaction's work."""

    transaction: int
    careful: bool
    """Process in savepoints, so that a part that fails does not undo the rest."""
    done: list[ClaimedRow] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    """Aggregates with a failed event: their later events of the batch wait."""
    savepoints: int = 0

    def take(self, part: Done) -> None:
        """Add the result of a handler."""
        self.done += part.done
        for row, error in part.failed:
            self.fail(row, error)

    def fail(self, row: ClaimedRow, error: Exception) -> None:
        """Add a failed event, and stop its aggregate."""
        self.failed.append((row, error))
        self.stopped.add(row.aggregate)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be processed, and when to try it again (`delay` in seconds).

    `error` is the traceback. `entry` is a JSON object for the event's history, or None to leave it out. `counts` says
    whether to count an attempt, and `blocks` whether, as a dead letter, it blocks the later events of its aggregate.
    """

    position: int
    aggregate: str
    error: str
    fingerprint: str
    entry: str | None
    delay: float = 0.0
    waits: Waits = Waits.retry
    counts: bool = True
    blocks: bool = True

    @classmethod
    def of(cls, row: ClaimedRow, error: Exception, policy: RetryPolicy, *, blocks: bool) -> Self:
        """Make the failure to store. `policy` is the subscription's; `blocks` is whether a dead letter would block."""
        locked, unknown = is_locked(error), isinstance(error, NoHandler)
        delay = policy.delay(row.attempts)
        if locked:
            delay = _LOCKED_AGAIN
        elif unknown:
            delay = _UNKNOWN_AGAIN
        return cls(
            position=row.position,
            aggregate=row.aggregate,
            error=describe(error),
            fingerprint=fingerprint(error),
            entry=None if locked else history_entry(error, row.attempts + 1, now()),
            delay=delay,
            waits=Waits.unknown if unknown else Waits.retry,
            counts=not (unknown or locked),
            blocks=blocks,
        )
