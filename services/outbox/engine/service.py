"""Claims due events and processes them in batches, each batch in one transaction."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from sqlalchemy.exc import DBAPIError

from services.outbox.engine.schemas import ClaimedRow, Failure, Outcome
from services.outbox.engine.window import Floor, Window
from services.outbox.events import Claimed, Event, NoHandler, Registry, Trace, Unprocessable
from services.outbox.policy import OnDeath, RetryPolicy, is_locked, is_transient
from services.outbox.subscription import (
    Subscription,
    TransactionT,
    Verdicts,
    handle,
    longest_limit,
)
from services.sql import sqlstate
from services.transaction import SAVEPOINT_BUDGET, Transaction

logger = logging.getLogger(__name__)

_SHORTEST_LIMIT = 0.5
"""Seconds that a part of a batch may take at least, however small a part it is: more than it may wait for a lock."""

_ABORTED = "25P02"
"""SQLSTATE of a statement in a transaction in which another has failed."""

_CAREFUL_BATCHES = 20
"""Batches after a failure that are processed in savepoints from the start."""

_NO_TRACE = Trace()


class _Work(NamedTuple):
    row: ClaimedRow
    claimed: Claimed[Any]


@dataclass(slots=True)
class _Batch:
    """The state of one transaction's work."""

    transaction: int
    careful: bool
    """In savepoints, so that a part that fails takes nothing else with it."""
    done: list[ClaimedRow] = field(default_factory=list)
    failed: list[tuple[ClaimedRow, Exception]] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    """Aggregates with a failed event: their later events of the batch wait."""
    savepoints: int = 0


class TransactionEnded(Unprocessable):
    """The handler committed or rolled back by itself, and may have taken effect in part: no retry is safe."""

    def __init__(self, event_type: str, works: Sequence[_Work], batch: _Batch) -> None:
        super().__init__(f"the handler of {event_type!r} ended the transaction; what it wrote may be committed")
        self.works = works
        self.batch = batch


class _Failed(Exception):
    """A batch without savepoints has failed: it is rolled back, and processed again with them."""

    def __init__(self, ended: TransactionEnded | None = None) -> None:
        super().__init__("a batch without savepoints failed")
        self.ended = ended
        """What to raise where it turns out that the handler has committed."""


class Processor(Generic[TransactionT]):
    """Processes the outbox. Effects, next events and the deletion of the outbox rows are one commit.

    One transaction at a time; several processors, in one process or in many, share the outbox. `prepared` says that the
    connections have the `claim_settings` of the longest time limit: otherwise each transaction asks for them, which
    costs a trip to the database. `siblings` is one list for all processors of a process, in which they are told apart.
    """

    def __init__(
        self,
        open_transaction: Callable[[], TransactionT],
        subscriptions: Sequence[Subscription[TransactionT]],
        *,
        retry: RetryPolicy,
        batch_size: int,
        time_limit: float = 30.0,
        prepared: bool = False,
        siblings: list[Window] | None = None,
    ) -> None:
        self._open = open_transaction
        self._prepared = prepared
        self._events = Registry([subscription.event for subscription in subscriptions])
        self._subscriptions: Mapping[str, Subscription[TransactionT]] = {
            subscription.event.type: subscription for subscription in subscriptions
        }
        self._retry = retry
        self._time_limit = time_limit
        self._longest_limit = longest_limit(subscriptions, time_limit)
        self._batch_size = batch_size
        self._careful = 0
        """Batches to come that are processed in savepoints whatever they hold."""
        self._locked = 0
        """How many of the next batches tell their handlers to leave out what is locked."""
        self._siblings = [] if siblings is None else siblings
        self._begin_anew()

    async def run_once(self) -> Outcome:
        """Claim one batch and process it in one transaction.

        Where it fails, it is rolled back and processed anew: split in halves, each in a savepoint, until the poison
        event stands alone. That one gets its attempt counted and waits, or becomes a dead letter; its neighbours
        commit. Raises what the database raises when it cannot be reached or chooses this transaction as a deadlock's
        victim: everything is rolled back then.
        """
        try:
            return await self._run()
        except DBAPIError:
            # Perhaps it is another server now, whose positions go on from elsewhere.
            self._window.close()
            self._begin_anew()
            raise
        finally:
            self._window.settle()

    async def look(self) -> tuple[bool, float | None]:
        """Whether a batch may be waiting, and in how many seconds the next deferred event is due. Costs one query."""
        async with self._open() as transaction:
            return await transaction.outbox.look(self._window.whole(self._floor))

    async def park_unknown(self) -> int:
        """Let events at the head of the queue wait whose type has no handler here; their number."""
        async with self._open() as transaction:
            await self._begin(transaction)
            parked = await transaction.outbox.park_unknown(list(self._events), self._floor.position, 2000)
            await transaction.commit()
        if parked:
            logger.warning("%d events are of types that this worker has no handler for; they wait", parked)
        return parked

    async def _begin(self, transaction: TransactionT) -> None:
        if not self._prepared:
            await transaction.outbox.begin(self._longest_limit)

    def _begin_anew(self) -> None:
        self._floor = Floor()
        self._window = Window(list(self._events), self._batch_size, self._siblings)

    async def _run(self) -> Outcome:
        try:
            try:
                async with self._open() as transaction:
                    return await self._process_batch(transaction)
            except _Failed as failed:
                # It is known now that a batch may fail, and it is cheaper to be ready for that.
                self._careful = _CAREFUL_BATCHES
                if is_locked(failed.__cause__):
                    self._locked = _CAREFUL_BATCHES
                async with self._open() as transaction:
                    if failed.ended and await transaction.outbox.was_committed(failed.ended.batch.transaction):
                        raise failed.ended from failed
                    return await self._process_batch(transaction)
        except TransactionEnded as ended:
            return await self._make_up(ended)

    async def _process_batch(self, transaction: TransactionT) -> Outcome:
        await self._begin(transaction)
        # Before the claim: whoever has ended by now is seen by it.
        oldest_taker = await transaction.outbox.oldest_taker() if self._floor.held_up else 0
        horizon, rows = await transaction.outbox.claim(self._window.spans(self._floor), self._floor.position)
        self._floor.rise(horizon, oldest_taker)
        full = self._window.note(rows)
        if not rows:
            return Outcome()
        transaction.leaves_out_locked = False
        if self._locked > 0:
            await self._leave_out_locked(transaction)
        stages = _stages([row for row in rows if not row.blocked])
        batch = _Batch(horizon.transaction, careful=self._careful > 0 or _may_fail(stages))
        for stage in stages:
            for event_type, events in stage.items():
                await self._process_type(transaction, self._subscriptions[event_type], events, batch)
        if batch.careful:
            self._careful = max(0, self._careful - 1)
            self._locked = max(0, self._locked - 1)
            if batch.done:
                await transaction.outbox.complete([row.position for row in batch.done])
        outcome = await self._settle_failures(transaction, batch)
        parked = [row.position for row in rows if row.parks]
        waiting = 0
        if parked:
            waiting = await transaction.outbox.park(parked)
        # After they were parked: those that wait for one of these are to be woken too.
        passed = {row.aggregate for row in batch.done if row.waited}
        if passed:
            await transaction.outbox.wake(sorted(passed))
        try:
            await transaction.commit()
        except Exception as error:
            # Deferred constraints are checked by the commit here.
            if batch.careful or is_transient(error):
                raise
            raise _Failed from error
        outcome.processed = len(batch.done)
        outcome.blocked = sum(row.blocked for row in rows) - waiting
        outcome.postponed += waiting
        progress = outcome.processed or outcome.retried or outcome.buried or outcome.postponed
        outcome.more |= bool(passed) or (full and bool(progress)) or batch.savepoints >= SAVEPOINT_BUDGET
        return outcome

    async def _leave_out_locked(self, transaction: TransactionT) -> None:
        """From here on, handlers leave out what is locked, and those that do not wait for a moment only."""
        transaction.leaves_out_locked = True
        await transaction.outbox.shorten_lock_timeout()

    async def _make_up(self, ended: TransactionEnded) -> Outcome:
        """After a handler has ended the transaction: bury what it was given, complete what was committed with it."""
        batch = ended.batch
        batch.failed = [(work.row, ended) for work in ended.works]
        async with self._open() as transaction:
            done = batch.done if await transaction.outbox.was_committed(batch.transaction) else []
            if done:
                await transaction.outbox.complete([row.position for row in done])
            outcome = await self._settle_failures(transaction, batch)
            # Without its locks another worker may have been here meanwhile: nothing may wait for what is gone.
            passed = {row.aggregate for row in (*done, *(row for row, _ in batch.failed))}
            await transaction.outbox.wake(sorted(passed))
            await transaction.commit()
        outcome.processed = len(done)
        outcome.more = True
        return outcome

    async def _process_type(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        rows: Sequence[ClaimedRow],
        batch: _Batch,
    ) -> None:
        works: list[_Work] = []
        read = subscription.event.reader()
        for row in rows:
            if row.aggregate in batch.stopped:
                continue
            try:
                works.append(_Work(row, _decode(read, row)))
            except (NoHandler, Unprocessable) as error:
                self._fail(row, error, batch)
        limit = subscription.time_limit or self._time_limit
        if batch.careful:
            await self._process(transaction, subscription, works, limit, batch)
        elif works:
            await self._process_at_once(transaction, subscription, works, limit, batch)

    async def _process_at_once(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        works: Sequence[_Work],
        limit: float,
        batch: _Batch,
    ) -> None:
        """Process without a savepoint, which would cost two trips to the database: for the batch that does not fail."""
        ended = TransactionEnded(subscription.event.type, works, batch)
        try:
            verdicts = await handle(transaction, subscription, [work.claimed for work in works], limit)
            done = _done(works, verdicts)
            if done:
                ours = await transaction.complete([row.position for row in done], batch.transaction)
            else:
                ours = await transaction.outbox.transaction() == batch.transaction
        except Exception as error:
            if is_transient(error):
                raise
            if not await _is_open(transaction, batch.transaction, aborted=True):
                raise ended from error
            raise _Failed(ended) from error
        if not ours:
            raise ended
        self._take(works, verdicts, batch)

    async def _process(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        works: Sequence[_Work],
        limit: float,
        batch: _Batch,
    ) -> None:
        if batch.stopped:
            works = [work for work in works if work.row.aggregate not in batch.stopped]
        if not works:
            return
        if batch.savepoints >= SAVEPOINT_BUDGET:
            # The rest is released by the commit and claimed again, in a transaction with a fresh budget.
            batch.stopped.update(work.row.aggregate for work in works)
            return
        batch.savepoints += 1
        try:
            # What would fail the commit is to fail here, where the poison event can be found.
            async with transaction.savepoint(plain=subscription.plain_sql, check=True):
                verdicts = await handle(transaction, subscription, [work.claimed for work in works], limit)
        except Exception as error:
            # A handler may raise anything; it is kept with the event.
            if is_transient(error):
                raise
            if not await _is_open(transaction, batch.transaction):
                raise TransactionEnded(subscription.event.type, works, batch) from error
            if is_locked(error):
                self._locked = _CAREFUL_BATCHES
                await self._leave_out_locked(transaction)
            if len(works) == 1:
                self._fail(works[0].row, error, batch)
                return
            middle = len(works) // 2
            # So that a handler that hangs holds the transaction for twice its limit at most, not for each part anew.
            limit = max(_SHORTEST_LIMIT, limit / 2)
            await self._process(transaction, subscription, works[:middle], limit, batch)
            await self._process(transaction, subscription, works[middle:], limit, batch)
        else:
            self._take(works, verdicts, batch)

    def _take(self, works: Sequence[_Work], verdicts: Verdicts, batch: _Batch) -> None:
        batch.done += _done(works, verdicts)
        for work, error in zip(works, verdicts or (), strict=verdicts is not None):
            if error is not None:
                self._fail(work.row, error, batch)

    def _fail(self, row: ClaimedRow, error: Exception, batch: _Batch) -> None:
        batch.failed.append((row, error))
        batch.stopped.add(row.aggregate)

    async def _settle_failures(self, transaction: TransactionT, batch: _Batch) -> Outcome:
        """Count the attempts; bury events that have used them up. Events that need a locked row wait uncounted."""
        put_off: list[Failure] = []
        bury: list[Failure] = []
        locked = [row for row, error in batch.failed if is_locked(error)]
        if locked:
            first = locked[0].event_id
            logger.debug(
                "%d events wait for rows that another transaction has locked, the first is %s", len(locked), first
            )
        for row, error in batch.failed:
            subscription = self._subscriptions[row.type]
            policy = subscription.retry or self._retry
            failure = Failure.of(row, error, policy, blocks=subscription.on_death is OnDeath.block)
            dead = failure.counts and policy.gives_up(error, row.attempts + 1)
            (bury if dead else put_off).append(failure)
            if not is_locked(error):
                logger.log(
                    logging.ERROR if dead else logging.WARNING,
                    "event %s (%s) of %s failed, attempt %d%s: %r",
                    row.event_id,
                    row.type,
                    row.aggregate,
                    row.attempts + 1,
                    ", now a dead letter" if dead else "",
                    error,
                )
        if put_off:
            await transaction.outbox.put_off(put_off)
        if bury:
            await transaction.outbox.bury(bury)
        # Those that a dead letter does not block are due at once.
        more = any(not failure.blocks for failure in bury)
        return Outcome(retried=len(put_off) - len(locked), buried=len(bury), postponed=len(locked), more=more)


def _done(works: Sequence[_Work], verdicts: Verdicts) -> list[ClaimedRow]:
    if verdicts is None:
        return [work.row for work in works]
    return [work.row for work, error in zip(works, verdicts, strict=True) if error is None]


async def _is_open(transaction: Transaction, number: int, *, aborted: bool = False) -> bool:
    """Whether this is still the transaction with that id. Raises `DBAPIError` where the connection is lost.

    `aborted` is the answer for a transaction in which a statement has failed: the server does not tell any more.
    """
    try:
        return await transaction.outbox.transaction() == number
    except Exception as error:
        if is_transient(error):
            raise
        return aborted and isinstance(error, DBAPIError) and sqlstate(error) == _ABORTED


def _may_fail(stages: Sequence[Mapping[str, Sequence[ClaimedRow]]]) -> bool:
    """Whether to be ready for a failure: something has failed before, or not all is one handler's."""
    parts = [rows for stage in stages for rows in stage.values()]
    return len(parts) != 1 or any(row.attempts for row in parts[0])


def _stages(rows: Sequence[ClaimedRow]) -> list[dict[str, list[ClaimedRow]]]:
    """Rows by type, in stages: within an aggregate, a later stage holds what comes after an event of another type."""
    types = {row.type for row in rows}
    if len(types) == 1:
        return [{types.pop(): list(rows)}]
    stages: list[dict[str, list[ClaimedRow]]] = []
    reached: dict[str, tuple[int, str]] = {}
    for row in rows:
        number, before = reached.get(row.aggregate, (0, row.type))
        if row.type != before:
            number += 1
        reached[row.aggregate] = (number, row.type)
        while number >= len(stages):
            stages.append({})
        stages[number].setdefault(row.type, []).append(row)
    return stages


def _decode(read: Callable[[str, int], Event], row: ClaimedRow) -> Claimed[Any]:
    position, event_id, aggregate, _, attempts, _, version, payload, request_id, traceparent, _, _ = row
    if payload is None or version is None:
        raise Unprocessable(f"event {event_id} is not in the log")
    trace = Trace(request_id, traceparent) if request_id or traceparent else _NO_TRACE
    return Claimed(position, event_id, aggregate, attempts, read(payload, version), trace)
