"""Claims due events and processes them in batches, each batch in one transaction."""

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Generic

from sqlalchemy.exc import DBAPIError

from services.logs import Shown
from services.outbox.engine.schemas import (
    Batch,
    ClaimedRow,
    Done,
    Ended,
    Failed,
    FailedRow,
    Failure,
    Outcome,
    TransactionEnded,
    Work,
)
from services.outbox.engine.window import Floor, Portion, Window, may_fail, stages_of
from services.outbox.events import Claimed, Event, Registry, Trace, Unprocessable
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
"""The shortest time limit for a part of a batch, in seconds. It is longer than the short lock timeout."""

_ABORTED = "25P02"
"""SQLSTATE of a statement in a transaction in which an earlier one has failed."""

_CAREFUL_BATCHES = 20
"""After a failure, the number of batches that are processed in savepoints from the start."""

_NO_TRACE = Trace()


class Processor(Generic[TransactionT]):
    """Processes the outbox. Effects, next events and the deletion of the outbox rows are committed together.

    A processor runs one transaction at a time; several processors, in one process or in many, can share the outbox.
    `prepared` says that the connections already have the `claim_settings` for the longest time limit. Otherwise each
    transaction sets them, which costs a round trip. `siblings` is a list that all processors of a process share, so
    that they can keep out of each other's way.
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
        """How many of the next batches are processed in savepoints, whatever they hold."""
        self._locked = 0
        """How many of the next batches tell their handlers to leave out what is locked."""
        self._portion = Portion()
        self._siblings = [] if siblings is None else siblings
        self._start_over()

    async def run_once(self) -> Outcome:
        """Claim one batch and process it in one transaction.

        If the batch fails, it is rolled back and processed again: split in halves, each in a savepoint, until the
        poison event is isolated. That event's attempt is counted, and it waits or becomes a dead letter; its neighbours
        commit. Raises what the database raises if it cannot be reached, or if this transaction is the victim of a
        deadlock. Everything is then rolled back.
        """
        try:
            return await self._run()
        except Exception:
            # This may be another server now, whose positions continue from a different number.
            self._window.close()
            self._start_over()
            raise
        finally:
            self._window.settle()

    async def look(self) -> tuple[bool, float | None]:
        """Whether there may be a batch to claim, and in how many seconds the next event is due.

        Takes one query, and another one on a new connection.
        """
        floor, at = self._floor, monotonic()
        full = floor.is_due
        async with self._open() as transaction:
            found = await transaction.outbox.look(self._window.whole(0 if full else floor.position))
            if floor.is_new(found.backend) and not full:
                full = True
                found = await transaction.outbox.look(self._window.whole(0))
        if full and found.ready:
            # Its claim finds it only from there.
            floor.distrust()
        elif full:
            floor.looked(at)
        return found.ready, found.due_in

    async def park_unknown(self) -> int:
        """Make events at the head of the queue wait if their type has no handler here; return their number."""
        async with self._open() as transaction:
            await self._begin(transaction)
            parked = await transaction.outbox.park_unknown(list(self._events), self._floor.position, 2000)
            await transaction.commit()
        if parked:
            logger.warning("this worker has no handler for the types of %d events; they wait", parked)
        return parked

    async def _begin(self, transaction: TransactionT) -> None:
        if not self._prepared:
            await transaction.outbox.begin(self._longest_limit)

    def _start_over(self) -> None:
        self._floor = Floor()
        self._window = Window(list(self._events), self._batch_size, self._siblings)

    async def _run(self, before: Failed | None = None) -> Outcome:
        """Process a batch, and once more if it fails; `before` is that failure. In savepoints only parts can fail."""
        result: Outcome | Failed | Ended
        ended = before.if_committed if before else None
        async with self._open() as transaction:
            if ended and await transaction.outbox.was_committed(ended.transaction):
                result = ended
            else:
                result = await self._process_batch(transaction)
        match result:
            case Outcome():
                return result
            case Failed(error):
                # The next batches may fail, too, and it is cheaper to be prepared.
                self._careful = _CAREFUL_BATCHES
                if is_locked(error):
                    self._locked = _CAREFUL_BATCHES
                return await self._run(result)
            case Ended():
                return await self._make_up(result)

    async def _process_batch(self, transaction: TransactionT) -> Outcome | Failed | Ended:
        """Claim a batch, process it and commit. What is not committed is rolled back when the transaction is closed."""
        await self._begin(transaction)
        # Before the claim, whose snapshot then shows every transaction that has ended by now.
        oldest_taker = await transaction.outbox.oldest_taker() if self._floor.held_up else 0
        self._floor.begin()
        horizon, rows = await transaction.outbox.claim(self._window.spans(self._floor), self._floor.position)
        again = self._floor.rise(horizon, oldest_taker)
        full = self._window.note(rows)
        if not rows:
            return Outcome(more=again)
        transaction.leaves_out_locked = False
        if self._locked > 0:
            await self._leave_out_locked(transaction)
        free = [row for row in rows if not row.blocked]
        taken = self._portion.of(free)
        stages = stages_of(taken)
        batch = Batch(horizon.transaction, careful=self._careful > 0 or may_fail(stages))
        broken = await self._process_stages(transaction, stages, batch)
        if broken is not None:
            return broken
        if batch.careful:
            self._careful = max(0, self._careful - 1)
            self._locked = max(0, self._locked - 1)
            if batch.done:
                await transaction.outbox.complete([row.position for row in batch.done])
        outcome = await self._settle_failures(transaction, batch.failed)
        parked = [row.position for row in rows if row.parks]
        waiting = 0
        if parked:
            waiting = await transaction.outbox.park(parked)
        # Only now: rows that have just been parked behind one of these must be woken, too.
        passed = {row.aggregate for row in batch.done if row.waited}
        if passed:
            await transaction.outbox.wake(sorted(passed))
        try:
            await transaction.commit()
        except Exception as error:
            # Without savepoints, deferred constraints are checked at the commit.
            if batch.careful or is_transient(error):
                raise
            return Failed(error)
        self._portion.committed()
        outcome.processed = len(batch.done)
        outcome.blocked = sum(row.blocked for row in rows) - waiting
        outcome.postponed += waiting
        progress = outcome.processed or outcome.retried or outcome.buried or outcome.postponed
        outcome.more |= (
            again
            or len(taken) < len(free)
            or bool(passed)
            or (full and bool(progress))
            or batch.savepoints >= SAVEPOINT_BUDGET
        )
        return outcome

    async def _leave_out_locked(self, transaction: TransactionT) -> None:
        """From now on, handlers leave out what is locked; those that do not can wait for a lock only briefly."""
        transaction.leaves_out_locked = True
        await transaction.outbox.shorten_lock_timeout()

    async def _make_up(self, ended: Ended) -> Outcome:
        """After a handler has ended the transaction: bury its events, and complete what was committed before them."""
        async with self._open() as transaction:
            done = ended.done if await transaction.outbox.was_committed(ended.transaction) else ()
            if done:
                await transaction.outbox.complete([row.position for row in done])
            outcome = await self._settle_failures(transaction, [(row, ended.error) for row in ended.given])
            # The locks were gone, so another worker may have parked rows behind these, and no one else would wake them.
            passed = {row.aggregate for row in (*done, *ended.given)}
            await transaction.outbox.wake(sorted(passed))
            await transaction.commit()
        outcome.processed = len(done)
        outcome.more = True
        return outcome

    async def _process_stages(
        self, transaction: TransactionT, stages: Sequence[Mapping[str, Sequence[ClaimedRow]]], batch: Batch
    ) -> Failed | Ended | None:
        """Process the stages one after the other. Returns the reason if the transaction cannot be committed."""
        try:
            for event_type, events in (part for stage in stages for part in stage.items()):
                broken = await self._process_type(transaction, self._subscriptions[event_type], events, batch)
                if broken is not None:
                    return broken
        except DBAPIError as error:
            self._portion.lost(error)
            raise
        return None

    async def _process_type(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        rows: Sequence[ClaimedRow],
        batch: Batch,
    ) -> Failed | Ended | None:
        """Process events of one type. Returns the reason if the transaction cannot be committed."""
        works: list[Work] = []
        read = subscription.event.reader()
        for row in rows:
            if row.aggregate in batch.stopped:
                continue
            if (lost := self._portion.error_of(row)) is not None:
                batch.fail(row, lost)
                continue
            try:
                works.append(Work(row, _decode(read, row)))
            except Exception as error:  # noqa: BLE001  (`upgraded` and validators are the event's own code)
                batch.fail(row, error)
        limit = subscription.time_limit or self._time_limit
        if batch.careful:
            return await self._process(transaction, subscription, works, limit, batch)
        if not works:
            return None
        match await self._try(transaction, subscription, works, limit, batch):
            case Done() as part:
                batch.take(part)
                return None
            case (Failed() | Ended()) as broken:
                return broken

    async def _process(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        works: Sequence[Work],
        limit: float,
        batch: Batch,
    ) -> Ended | None:
        """Process events in a savepoint. If that fails, process each half, down to the event that is to blame."""
        if batch.stopped:
            works = [work for work in works if work.row.aggregate not in batch.stopped]
        if not works:
            return None
        if batch.savepoints >= SAVEPOINT_BUDGET:
            # The commit releases the rest. It is claimed again in a transaction with a fresh budget.
            batch.stopped.update(work.row.aggregate for work in works)
            return None
        batch.savepoints += 1
        match await self._try_in_savepoint(transaction, subscription, works, limit, batch):
            case Done() as part:
                batch.take(part)
                return None
            case Ended() as broken:
                return broken
            case Failed(error):
                if is_locked(error):
                    self._locked = _CAREFUL_BATCHES
                    await self._leave_out_locked(transaction)
                if len(works) == 1:
                    batch.fail(works[0].row, error)
                    return None
                middle = len(works) // 2
                # So a handler that hangs keeps the transaction open for at most twice its limit.
                limit = max(_SHORTEST_LIMIT, limit / 2)
                ended = await self._process(transaction, subscription, works[:middle], limit, batch)
                return ended or await self._process(transaction, subscription, works[middle:], limit, batch)

    async def _try(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        works: Sequence[Work],
        limit: float,
        batch: Batch,
    ) -> Done | Failed | Ended:
        """Process without a savepoint, which would cost two round trips: most batches do not fail."""
        try:
            part = _done(works, await handle(transaction, subscription, [work.claimed for work in works], limit))
            if part.done:
                ours = await transaction.complete([row.position for row in part.done], batch.transaction)
            else:
                ours = await transaction.outbox.transaction() == batch.transaction
        except Exception as error:
            if is_transient(error):
                raise
            ended = _ended(subscription, works, batch, error)
            return Failed(error, ended) if await _is_open(transaction, batch.transaction, aborted=True) else ended
        return part if ours else _ended(subscription, works, batch)

    async def _try_in_savepoint(
        self,
        transaction: TransactionT,
        subscription: Subscription[TransactionT],
        works: Sequence[Work],
        limit: float,
        batch: Batch,
    ) -> Done | Failed | Ended:
        """Process in a savepoint, which undoes the handler's work if it raises."""
        try:
            # What would make the commit fail must fail here, where the poison event can be found.
            async with transaction.savepoint(plain=subscription.plain_sql, check=True):
                verdicts = await handle(transaction, subscription, [work.claimed for work in works], limit)
        except Exception as error:
            if is_transient(error):
                raise
            if await _is_open(transaction, batch.transaction):
                return Failed(error)
            return _ended(subscription, works, batch, error)
        return _done(works, verdicts)

    async def _settle_failures(self, transaction: TransactionT, failed: Sequence[FailedRow]) -> Outcome:
        """Count the attempts and bury events that have used theirs up. A lock timeout does not count as an attempt."""
        put_off: list[Failure] = []
        bury: list[Failure] = []
        locked = [row for row, error in failed if is_locked(error)]
        if locked:
            first = locked[0].event_id
            logger.debug("%d events wait for rows locked by another transaction; the first is %s", len(locked), first)
        for row, error in failed:
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
                    Shown(error),
                )
        if put_off:
            await transaction.outbox.put_off(put_off)
        if bury:
            await transaction.outbox.bury(bury)
        # Events behind a dead letter that does not block are due immediately.
        more = any(not failure.blocks for failure in bury)
        return Outcome(retried=len(put_off) - len(locked), buried=len(bury), postponed=len(locked), more=more)


def _done(works: Sequence[Work], verdicts: Verdicts) -> Done:
    if verdicts is None:
        return Done([work.row for work in works])
    told = list(zip((work.row for work in works), verdicts, strict=True))
    return Done(
        [row for row, error in told if error is None],
        [(row, error) for row, error in told if error is not None],
    )


def _ended(
    subscription: Subscription[TransactionT], works: Sequence[Work], batch: Batch, cause: Exception | None = None
) -> Ended:
    name = subscription.event.type
    error = TransactionEnded(f"the handler of {name!r} ended the transaction; what it wrote may be committed")
    error.__cause__ = cause
    return Ended(error, batch.transaction, tuple(batch.done), [work.row for work in works])


async def _is_open(transaction: Transaction, number: int, *, aborted: bool = False) -> bool:
    """Whether this is still the transaction with that id. Raises `DBAPIError` if the connection is lost.

    `aborted` is the answer if a statement in the transaction has failed: the server then no longer returns the id.
    """
    try:
        return await transaction.outbox.transaction() == number
    except Exception as error:
        if is_transient(error):
            raise
        return aborted and isinstance(error, DBAPIError) and sqlstate(error) == _ABORTED


def _decode(read: Callable[[str, int], Event], row: ClaimedRow) -> Claimed[Any]:
    position, event_id, aggregate, _, attempts, _, version, payload, request_id, traceparent, _, _ = row
    if payload is None or version is None:
        raise Unprocessable(f"event {event_id} is not in the log")
    trace = Trace(request_id, traceparent) if request_id or traceparent else _NO_TRACE
    return Claimed(position, event_id, aggregate, attempts, read(payload, version), trace)
