"""Claims due events and processes them in batches, each batch in one transaction."""

import logging
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from services.outbox.events import Claimed, Event, Trace
from services.outbox.repository import ClaimedRow, Failure, OutboxRepository
from services.sql import CONTENTION, sqlstate

logger = logging.getLogger(__name__)

SAVEPOINT_BUDGET = 48
"""Savepoints in one transaction at most; more than 64 overflow a PostgreSQL backend's subtransaction cache."""


class Transaction(Protocol):
    """What the engine needs of a unit of work."""

    @property
    def outbox(self) -> OutboxRepository: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: Any) -> None: ...

    def savepoint(self) -> AbstractAsyncContextManager[None]: ...

    async def check(self) -> None: ...

    async def commit(self) -> None: ...


TransactionT = TypeVar("TransactionT", bound=Transaction)
Handler = Callable[[TransactionT, Sequence[Claimed[Any]]], Awaitable[None]]
"""Processes a batch of events of one type inside the transaction, whole or not at all; it never commits."""


class Unprocessable(Exception):
    """Raised for an event that no retry can save: it becomes a dead letter at once."""


class NoHandler(Exception):
    """This worker does not know the event's type or version. Another, of a newer release, may: it is tried again."""


@dataclass(frozen=True, slots=True)
class Subscription(Generic[TransactionT]):
    """An event type and what processes it."""

    event: type[Event]
    handler: Handler[TransactionT]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff: half to all of `base * 2**attempts` seconds, up to `cap`, for `max_attempts` attempts."""

    max_attempts: int
    base: float
    cap: float

    def delay(self, attempts: int) -> float:
        """Seconds to wait after this many failed attempts."""
        longest = min(self.cap, self.base * 2.0 ** min(attempts, 30))
        return random.uniform(0.5, 1.0) * longest  # noqa: S311


@dataclass(slots=True)
class Outcome:
    """What one transaction did. `more` says whether the next claim may find something at once."""

    processed: int = 0
    retried: int = 0
    buried: int = 0
    postponed: int = 0
    more: bool = False


@dataclass(slots=True)
class _Failed:
    claimed: ClaimedRow
    error: BaseException


@dataclass(slots=True)
class _Batch:
    """The state of one transaction's work."""

    done: list[int] = field(default_factory=list)
    failed: list[_Failed] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    """Aggregates with a failed event: their later events of the batch wait."""
    savepoints: int = 0


class Processor(Generic[TransactionT]):
    """Processes the outbox. Effects, next events and the deletion of the outbox rows are one commit."""

    def __init__(
        self,
        open_transaction: Callable[[], TransactionT],
        subscriptions: Sequence[Subscription[TransactionT]],
        *,
        retry: RetryPolicy,
        batch_size: int,
    ) -> None:
        self._open = open_transaction
        self._subscriptions: Mapping[str, Subscription[TransactionT]] = {
            subscription.event.type: subscription for subscription in subscriptions
        }
        self._retry = retry
        self._batch_size = batch_size

    async def run_once(self) -> Outcome:
        """Claim one batch and process it in one transaction.

        A failing batch is split in halves, each in a savepoint, until the poison event stands alone: it gets its
        attempt counted and waits, or becomes a dead letter; its neighbours commit. Raises what the database raises when
        it cannot be reached or chooses this transaction as a deadlock's victim: everything is rolled back then.
        """
        async with self._open() as transaction:
            rows = await transaction.outbox.claim(self._batch_size)
            if not rows:
                return Outcome()
            batch = _Batch()
            for wave in _waves([row for row in rows if not row.blocked]):
                await self._process_wave(transaction, wave, batch)
            if batch.done:
                await transaction.outbox.complete(batch.done)
            outcome = await self._settle_failures(transaction, batch)
            blocked = [row.position for row in rows if row.blocked]
            if blocked:
                outcome.postponed = await transaction.outbox.postpone_blocked(blocked)
            await transaction.commit()
        outcome.processed = len(batch.done)
        # A full claim has more behind it, unless the next would find the same rows, blocked by another worker's.
        full = len(rows) == self._batch_size and (len(blocked) < len(rows) or outcome.postponed > 0)
        outcome.more = full or batch.savepoints >= SAVEPOINT_BUDGET
        return outcome

    async def _process_wave(self, transaction: TransactionT, wave: Sequence[ClaimedRow], batch: _Batch) -> None:
        by_type: dict[str, list[tuple[ClaimedRow, Claimed[Any]]]] = {}
        for row in wave:
            if row.aggregate in batch.stopped:
                continue
            try:
                claimed = self._decode(row)
            except (NoHandler, Unprocessable) as error:
                self._fail(row, error, batch)
            else:
                by_type.setdefault(row.type, []).append((row, claimed))
        for event_type, events in by_type.items():
            await self._process(transaction, self._subscriptions[event_type].handler, events, batch)

    def _decode(self, row: ClaimedRow) -> Claimed[Any]:
        subscription = self._subscriptions.get(row.type)
        if subscription is None:
            raise NoHandler(f"this worker has no handler for events of type {row.type!r}")
        if row.payload is None:
            raise Unprocessable(f"event {row.event_id} is not in the log")
        if row.version != subscription.event.version:
            raise NoHandler(
                f"this worker has a handler for version {subscription.event.version} of {row.type!r}, not {row.version}"
            )
        try:
            event = subscription.event.model_validate(row.payload)
        except ValidationError as error:
            raise Unprocessable(f"the payload is no {row.type!r}: {error}") from error
        trace = Trace(row.request_id, row.traceparent)
        return Claimed(row.position, row.event_id, row.aggregate, row.attempts, event, trace)

    async def _process(
        self,
        transaction: TransactionT,
        handler: Handler[TransactionT],
        events: Sequence[tuple[ClaimedRow, Claimed[Any]]],
        batch: _Batch,
    ) -> None:
        if batch.savepoints >= SAVEPOINT_BUDGET:
            # The rest is released by the commit and claimed again, in a transaction with a fresh budget.
            batch.stopped.update(row.aggregate for row, _ in events)
            return
        batch.savepoints += 1
        try:
            async with transaction.savepoint():
                await handler(transaction, [claimed for _, claimed in events])
                # What would fail the commit is to fail here, where the poison event can be found.
                await transaction.check()
        except Exception as error:
            # A handler may raise anything; it is kept with the event.
            if _is_transient(error):
                raise
            if len(events) == 1:
                self._fail(events[0][0], error, batch)
                return
            middle = len(events) // 2
            await self._process(transaction, handler, events[:middle], batch)
            await self._process(transaction, handler, events[middle:], batch)
        else:
            batch.done.extend(row.position for row, _ in events)

    def _fail(self, row: ClaimedRow, error: Exception, batch: _Batch) -> None:
        batch.failed.append(_Failed(row, error))
        batch.stopped.add(row.aggregate)

    async def _settle_failures(self, transaction: TransactionT, batch: _Batch) -> Outcome:
        """Count the attempts; bury what has used them up."""
        put_off: list[Failure] = []
        bury: list[Failure] = []
        for failed in batch.failed:
            row, error = failed.claimed, failed.error
            attempts = row.attempts + 1
            dead = isinstance(error, Unprocessable) or attempts >= self._retry.max_attempts
            failure = Failure(row.position, row.aggregate, _describe(error), self._retry.delay(row.attempts))
            (bury if dead else put_off).append(failure)
            logger.log(
                logging.ERROR if dead else logging.WARNING,
                "event %s (%s) of %s failed, attempt %d%s: %r",
                row.event_id,
                row.type,
                row.aggregate,
                attempts,
                ", now a dead letter" if dead else "",
                error,
            )
        if put_off:
            await transaction.outbox.put_off(put_off)
        if bury:
            await transaction.outbox.bury(bury)
        return Outcome(retried=len(put_off), buried=len(bury))


def _waves(rows: Sequence[ClaimedRow]) -> list[list[ClaimedRow]]:
    """Split a claim so that each wave holds at most one event of an aggregate: the first, then the second, ..."""
    waves: list[list[ClaimedRow]] = []
    seen: dict[str, int] = {}
    for row in rows:
        number = seen.get(row.aggregate, 0)
        seen[row.aggregate] = number + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(row)
    return waves


def _is_transient(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    # The batch is innocent and is tried again as a whole.
    return error.connection_invalidated or sqlstate(error) in CONTENTION


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    # PostgreSQL's text cannot hold U+0000; the end of a traceback says most.
    return text.replace("\x00", "")[-8000:]
