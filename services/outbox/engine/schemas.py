"""What goes into a claim, what it finds, and what becomes of that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias
from uuid import UUID

from services.fields import now
from services.outbox.events import Claimed, NoHandler, Unprocessable
from services.outbox.models import Waits
from services.outbox.policy import RetryPolicy, describe, fingerprint, history_entry, is_locked

_UNKNOWN_AGAIN = 30.0
"""Seconds after which a worker looks again at an event of a version that it does not know."""

_LOCKED_AGAIN = 2.0
"""Seconds after which an event is tried again that needs a locked row."""


@dataclass(slots=True)
class Outcome:
    """What one transaction did. `more` says whether the next claim may find something at once.

    `blocked` counts events whose turn comes when another worker has ended its transaction.
    """

    processed: int = 0
    retried: int = 0
    buried: int = 0
    postponed: int = 0
    blocked: int = 0
    more: bool = False


class Span(NamedTuple):
    """Where a claim looks for one type: positions from `first` to before `past`; so many ready and due rows at most."""

    type: str
    first: int
    past: int
    ready: int
    due: int


class ClaimedRow(NamedTuple):
    """An outbox row locked by this transaction, with its event from the log (None where the log has lost it).

    `waited` is whether it was not simply ready. One that is `blocked` must not run now; where it `parks`, what blocks
    it waits itself.
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
    """What a claim's snapshot says of the positions: which is the first ready one, which are still to come.

    `last_taken` is the highest position that any transaction has taken, `transaction` the claim's own id, and every
    transaction with an id below `oldest_running` has ended.
    """

    first_ready: int | None
    last_taken: int
    transaction: int
    oldest_running: int


class Work(NamedTuple):
    """A claimed row, and what the handler is given of it."""

    row: ClaimedRow
    claimed: Claimed[Any]


FailedRow: TypeAlias = tuple[ClaimedRow, Exception]


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned. It has processed the events in `done`, and gave an exception for each in `failed`."""

    done: Sequence[ClaimedRow]
    failed: Sequence[FailedRow] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The handler committed or rolled back by itself, and may have taken effect in part: no retry is safe.

    `given` are the events it had, `done` those that were processed before them in the `transaction` that it ended.
    `error` is what the events it had fail with.
    """

    error: "TransactionEnded"
    transaction: int
    done: Sequence[ClaimedRow]
    given: Sequence[ClaimedRow]


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or the commit did, and nothing of it takes effect.

    In a transaction without savepoints that is not certain: after an error the server does not tell whether this is
    still the one that claimed the events. Where that one turns out to be committed, the handler has ended it, and the
    outcome is `if_committed`.
    """

    error: Exception
    if_committed: Ended | None = None


class TransactionEnded(Unprocessable):
    """What the events fail with whose handler ended the transaction. It is kept with them, and never raised."""


@dataclass(slots=True)
class Batch:
    """The state of one transaction's work."""

    transaction: int
    careful: bool
    """In savepoints, so that a part that fails takes nothing else with it."""
    done: list[ClaimedRow] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    """Aggregates with a failed event: their later events of the batch wait."""
    savepoints: int = 0

    def take(self, part: Done) -> None:
        """Take in what a handler has done."""
        self.done += part.done
        for row, error in part.failed:
            self.fail(row, error)

    def fail(self, row: ClaimedRow, error: Exception) -> None:
        """The event fails, and its aggregate stops."""
        self.failed.append((row, error))
        self.stopped.add(row.aggregate)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be processed, and when to try again (`delay` in seconds).

    `error` is the whole traceback, `entry` a JSON object for the event's history, if it is to be kept there. An attempt
    is counted where it `counts`. As a dead letter, it `blocks` the later events of its aggregate or not.
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
        """The failure to write. `policy` is that of its subscription, `blocks` whether a dead letter would block."""
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
