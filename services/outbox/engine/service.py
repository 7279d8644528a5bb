"""Claims due events and processes them in batches, each batch in one transaction."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Generic

from sqlalchemy.exc import DBAPIError

from services.logs import Repeats
from services.outbox import metrics
from services.outbox.engine.schemas import (
    Batch,
    ClaimedRow,
    Done,
    Failed,
    Failure,
    Kind,
    Outcome,
    Part,
    ProcessDied,
    Work,
    divided,
    first_positions,
    separated,
)
from services.outbox.engine.window import Floor, Pace, Portion, Standstill, Window, parts_of
from services.outbox.events import Registry
from services.outbox.policy import OnDeath, RetryPolicy, is_locked, is_transient
from services.outbox.subscription import AnySubscription as Subscription
from services.outbox.subscription import TimedOut, TransactionT, Verdicts, handle, longest_limit
from services.transaction import SAVEPOINT_BUDGET

logger = logging.getLogger(__name__)

_CAREFUL_BATCHES = 20
"""After a failure, the number of batches that are processed in savepoints from the start."""

_WARY_BATCHES = 20
"""After another worker was killed, the number of batches whose attempts are noted before they begin."""

_DIED_AGAIN = 5.0
"""Seconds, at least, until an event whose attempt was noted is tried again if the process does not survive it."""


class Processor(Generic[TransactionT]):
    """Processes the outbox. Effects, next events and the deletion of the outbox rows are committed together.

    A processor runs one transaction at a time; several processors, in one process or in many, can share the outbox.
    `prepared` says that the connections already have the `claim_settings` for the longest time limit. Otherwise each
    transaction sets them, which costs a round trip. `siblings` is a list that all processors of a process share, so
    that they can keep out of each other's way, as they share the `pace`.
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
        pace: Pace | None = None,
    ) -> None:
        self._open = open_transaction
        self._prepared = prepared
        events = Registry([subscription.event for subscription in subscriptions])
        self._versions = {name: event.version for name, event in events.items()}
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
        """How many of the next batches tell their handlers to leave out locked rows."""
        self._wary = 0
        """How many of the next batches note their attempts before they begin."""
        self._portion = Portion()
        self._standstill = Standstill()
        self._pace = pace or Pace()
        self._repeats = Repeats()
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

    def be_wary(self) -> None:
        """Another worker was killed: process the next batches so that an event that kills its process is found.

        The events of that worker are probably the next ones in the queue. This lasts for some batches, or until the
        queue is empty.
        """
        self._wary = _WARY_BATCHES

    async def look(self) -> tuple[bool, float | None]:
        """Whether there may be a batch to claim, and in how many seconds the next event is due.

        Takes one query, and another one on a new connection.
        """
        floor, at = self._floor, monotonic()
        full = floor.is_due
        async with self._open() as transaction:
            await self._begin(transaction)
            found = await transaction.outbox.look(self._window.whole(0 if full else floor.position))
            if floor.is_new(found.backend) and not full:
                full = True
                found = await transaction.outbox.look(self._window.whole(0))
        if full and found.ready:
            # Its claim finds it only from there.
            floor.distrust()
        elif full:
            floor.looked(at)
        floor.any_ready = found.any_ready
        return found.ready, found.due_in

    async def park_unknown(self) -> int:
        """Make events at the head of the queue wait if no live worker knows their type; return their number."""
        if not self._floor.any_ready:
            return 0
        async with self._open() as transaction:
            await self._begin(transaction)
            parked = await transaction.outbox.park_unknown(self._versions, self._floor.position, 2000)
            await transaction.commit()
        if parked:
            logger.warning("no live worker has a handler for the types or versions of %d events; they wait", parked)
        return parked

    async def _begin(self, transaction: TransactionT) -> None:
        if not self._prepared:
            await transaction.outbox.begin(self._longest_limit)

    def _start_over(self) -> None:
        self._floor = Floor()
        self._window = Window(self._versions, self._batch_size, self._siblings, self._pace)

    async def _run(self) -> Outcome:
        async with self._open() as transaction:
            result = await self._process_batch(transaction)
        if isinstance(result, Outcome):
            return result
        # The next batches may fail, too, and it is cheaper to be prepared. In savepoints, only parts of a batch fail.
        self._careful = _CAREFUL_BATCHES
        if isinstance(result.error, TimedOut):
            # Not the same batch again: the next one is smaller.
            return Outcome(more=True)
        if is_locked(result.error):
            self._locked = _CAREFUL_BATCHES
        return await self._run()

    async def _process_batch(self, transaction: TransactionT) -> Outcome | Failed:
        """Claim a batch, process it and commit. What is not committed is rolled back when the transaction is closed."""
        await self._begin(transaction)
        # Before the claim, whose snapshot then shows every transaction that has ended by now.
        oldest_taker = await transaction.outbox.oldest_taker() if self._floor.held_up else 0
        self._floor.begin()
        horizon, rows = await transaction.outbox.claim(self._window.spans(self._floor), self._floor.position)
        again = self._floor.rise(horizon, oldest_taker)
        full = self._window.note(rows)
        self._portion.claimed(rows)
        if again:
            # What was found further on may have to wait for what is at the beginning.
            return Outcome(more=True)
        if not rows:
            self._wary = 0
            return Outcome()
        transaction.leaves_out_locked = False
        overdue = self._standstill.overdue(self._window.reached(rows))
        free = [row for row in rows if not row.blocked]
        taken = self._portion.of(free)
        batch = Batch(horizon.transaction, careful=self._careful > 0)
        alone, taken = separated(taken)
        try:
            if alone is not None or (taken and self._wary > 0):
                taken = await self._note_attempts(transaction, alone, taken, batch)
                # The others are no longer locked. The next claim finds them again.
                rows, overdue = [], {}
            if self._locked > 0:
                await self._leave_out_locked(transaction)
            if (broken := await self._process_rows(transaction, taken, batch)) is not None:
                return broken
            outcome = await self._settle(transaction, batch, rows, overdue)
        except Exception as error:
            self._portion.lost(error)
            if batch.noted:
                # The process has survived the attempts, so they are as if they had not begun.
                with suppress(Exception):
                    await transaction.rollback()
                    await transaction.outbox.leave(sorted(batch.noted), counted=batch.counted)
                    await transaction.commit()
            raise
        try:
            await transaction.commit()
        except Exception as error:
            if not isinstance(error, DBAPIError):
                # A handler has done something to the session.
                self._portion.lost(error)
            elif not batch.careful and not is_transient(error):
                # Without savepoints, deferred constraints are checked at the commit.
                return Failed(error)
            raise
        self._portion.committed()
        metrics.committed(batch)
        self._careful, self._locked = max(0, self._careful - 1), max(0, self._locked - 1)
        progress = outcome.processed or outcome.retried or outcome.buried or outcome.postponed
        outcome.more |= len(taken) < len(free) or batch.released or (full and bool(progress))
        return outcome

    async def _note_attempts(
        self, transaction: TransactionT, one: ClaimedRow | None, rows: Sequence[ClaimedRow], batch: Batch
    ) -> Sequence[ClaimedRow]:
        """Commit a note that attempts begin, in case an event kills this process; return the rows to process.

        At first, all events of a batch are noted together, without counting an attempt. An event that is found with
        such a note was being tried when a process died: this `one` is tried on its own, with the attempt counted before
        it begins.
        """
        self._wary = max(0, self._wary - 1)
        batch.careful = True
        if one is not None:
            policy = self._policy(one.type)
            if one.attempts >= policy.max_attempts:
                batch.counted = True
                error = ProcessDied(f"the worker process ended during attempt {one.attempts}, the last one")
                batch.fail(one._replace(attempts=one.attempts - 1), error)
                return []
            rows, batch.counted = [one], True
        positions = [row.position for row in rows]
        delay = max(_DIED_AGAIN, self._policy(one.type).delay(one.attempts) if one else 0.0)
        await transaction.outbox.begin_attempts(positions, delay, counts=batch.counted)
        await transaction.commit()
        await self._begin(transaction)
        attempts = [row.attempts + batch.counted for row in rows]
        batch.transaction, batch.noted, free = await transaction.outbox.take_up(positions, attempts)
        missing = {row.aggregate for row in rows if row.position not in free}
        # If another worker has taken one of an aggregate's events or slots meanwhile, the later ones must wait for it.
        return self._portion.of([row._replace(waited=True) for row in rows if row.aggregate not in missing])

    async def _leave_out_locked(self, transaction: TransactionT) -> None:
        """From now on, handlers leave out locked rows; those that do not can wait for a lock only briefly."""
        transaction.leaves_out_locked = True
        await transaction.outbox.shorten_lock_timeout()

    async def _process_rows(self, transaction: TransactionT, rows: Sequence[ClaimedRow], batch: Batch) -> Failed | None:
        """Process events, and delete those that are done. Returns the reason if the transaction cannot be committed.

        Events that have waited often fail. They come last, in savepoints and with a budget of their own, so that they
        cannot hold up the others.
        """
        fresh, waited = divided(rows)
        first, last = parts_of(fresh), parts_of(waited)
        # Shared among the kinds, so that one that fails leaves enough for the others.
        batch.share = max(1, SAVEPOINT_BUDGET // max(1, len(dict(first)) + len(dict(last))))
        try:
            broken = await self._process_parts(transaction, first, batch, careful=batch.careful)
            if broken is None and last:
                broken = await self._process_parts(transaction, last, batch, careful=True)
            if broken is not None:
                return broken
            done = [row.position for row in batch.done]
            if (done or batch.failed) and not await transaction.complete(done, batch.transaction):
                raise RuntimeError("the events are no longer locked: the transaction that claimed them has ended")
        except Exception as error:
            if batch.careful or is_transient(error):
                raise
            return Failed(error)
        return None

    async def _process_parts(
        self, transaction: TransactionT, parts: Sequence[Part], batch: Batch, *, careful: bool
    ) -> Failed | None:
        """Process parts one after the other. If not `careful`, the first one that fails is the reason returned."""
        batch.deadline = monotonic() + self._longest_limit / 2
        batch.budget = dict.fromkeys(dict(parts), batch.share)
        for kind, rows in parts:
            works = self._read(kind, rows, batch)
            if careful:
                # An event that has failed before may well fail again, and so is tried on its own.
                for some in [[work] for work in works] if kind.has_failed else [works]:
                    await self._process(transaction, kind, some, batch)
            elif monotonic() > batch.deadline:
                batch.release(works)
            elif works:
                match await self._try(transaction, kind, works):
                    case Failed() as broken:
                        return broken
                    case done:
                        batch.take(done)
        return None

    def _read(self, kind: Kind, rows: Sequence[ClaimedRow], batch: Batch) -> list[Work]:
        """The events in the form that their handler gets. One that cannot be read fails."""
        works: list[Work] = []
        read = self._subscriptions[kind.type].event.reader()
        for row in rows:
            if row.aggregate in batch.stopped:
                continue
            if (lost := self._portion.error_of(row)) is not None:
                batch.fail(row, lost)
                continue
            try:
                works.append(Work(row, row.read(read)))
            except Exception as error:  # noqa: BLE001  (`upgraded` and validators are the event's own code)
                batch.fail(row, error)
        return works

    async def _process(self, transaction: TransactionT, kind: Kind, works: Sequence[Work], batch: Batch) -> None:
        """Process events in a savepoint. If that fails, process each half, down to the event that is to blame."""
        if batch.stopped:
            works = [work for work in works if work.row.aggregate not in batch.stopped]
        if not works:
            return
        if batch.budget[kind] == 0 or batch.savepoints >= SAVEPOINT_BUDGET or monotonic() > batch.deadline:
            batch.release(works)
            batch.unfunded[kind.type] += len(works)
            return
        batch.budget[kind] -= 1
        batch.savepoints += 1
        match await self._try_in_savepoint(transaction, kind, works):
            case Done() as done:
                batch.take(done)
            case Failed(TimedOut()) if len(works) > 1:
                # The halves would take as long. Fewer are claimed from now on.
                batch.release(works)
            case Failed(error):
                if is_locked(error):
                    self._locked = _CAREFUL_BATCHES
                    await self._leave_out_locked(transaction)
                if len(works) == 1:
                    batch.fail(works[0].row, error)
                    return
                middle = len(works) // 2
                await self._process(transaction, kind, works[:middle], batch)
                await self._process(transaction, kind, works[middle:], batch)

    async def _try(self, transaction: TransactionT, kind: Kind, works: Sequence[Work]) -> Done | Failed:
        """Process without a savepoint, which would cost two round trips: most batches do not fail."""
        try:
            return Done.of(works, await self._handle(transaction, kind, works))
        except Exception as error:
            if is_transient(error):
                raise
            if isinstance(error, TimedOut) and len(works) == 1:
                # It had the whole limit, and need not be tried again to count the attempt.
                self._portion.blame(works[0].row, error)
            return Failed(error)

    async def _try_in_savepoint(self, transaction: TransactionT, kind: Kind, works: Sequence[Work]) -> Done | Failed:
        """Process in a savepoint, which undoes the handler's work if it raises."""
        plain = self._subscriptions[kind.type].plain_sql
        try:
            # What would make the commit fail must fail here, where the poison event can be found.
            async with transaction.savepoint(plain=plain, check=True):
                verdicts = await self._handle(transaction, kind, works)
        except Exception as error:
            if is_transient(error):
                raise
            return Failed(error)
        return Done.of(works, verdicts)

    async def _handle(self, transaction: TransactionT, kind: Kind, works: Sequence[Work]) -> Verdicts:
        """Call the handler, and note how long it took. Raises what the handler raises, and `HandlerBroken`."""
        subscription = self._subscriptions[kind.type]
        limit = subscription.time_limit or self._time_limit
        began = monotonic()
        try:
            verdicts = await handle(transaction, subscription, [work.claimed for work in works], limit)
        except TimedOut:
            if len(works) > 1:
                self._pace.halve(kind.type, len(works))
            raise
        self._pace.finished(kind.type, len(works), (seconds := monotonic() - began) / limit)
        metrics.handled(kind.type, seconds)
        return verdicts

    async def _settle(
        self, transaction: TransactionT, batch: Batch, rows: Sequence[ClaimedRow], overdue: Mapping[int, float]
    ) -> Outcome:
        """Store failures, and put off what has to wait. `rows` are all that were claimed and are still locked."""
        outcome = await self._settle_failures(transaction, batch)
        if batch.left:
            await transaction.outbox.leave(batch.left, counted=batch.counted)
        parked = [row.position for row in rows if row.parks]
        waiting = await transaction.outbox.park(parked) if parked else 0
        if overdue:
            await transaction.outbox.put_behind(overdue)
        # Only now: rows that have just been parked behind one of these must be woken, too.
        failed = {row.aggregate for row, _ in batch.failed}
        passed = first_positions(
            (row.aggregate, row.position) for row in batch.done if row.waited and row.aggregate not in failed
        )
        if passed:
            await transaction.outbox.wake(passed)
            outcome.more = True
        for name in batch.starved:
            self._pace.halve(name, batch.unfunded[name])
        outcome.processed = len(batch.done)
        outcome.blocked = sum(row.blocked for row in rows) - waiting - len(overdue)
        outcome.postponed += waiting + len(overdue)
        return outcome

    async def _settle_failures(self, transaction: TransactionT, batch: Batch) -> Outcome:
        """Count the attempts and bury events that have used theirs up. A lock timeout does not count as an attempt."""
        put_off: list[Failure] = []
        bury = batch.buried
        locked = sum(is_locked(error) for _, error in batch.failed)
        for row, error in batch.failed:
            policy, cause = self._policy(row.type), metrics.reason_of(error)
            blocks = self._subscriptions[row.type].on_death is OnDeath.block
            failure = Failure.of(row, error, cause, policy, blocks=blocks, counted=batch.counted)
            dead = failure.is_attempt and policy.gives_up(error, failure.attempt)
            (bury if dead else put_off).append(failure)
            left_out = None if is_locked(error) else self._repeats.left_out((row.type, failure.fingerprint, dead))
            if left_out is not None:
                # Of many failures of one kind, only the first is logged, and then one a minute.
                level = logging.ERROR if dead else logging.WARNING
                logger.log(level, "%s", failure.told(row, error, dead=dead, left_out=left_out))
        if put_off:
            await transaction.outbox.put_off(put_off)
        if bury:
            await transaction.outbox.bury(bury)
        # Events behind a dead letter that does not block are due immediately.
        more = any(not failure.blocks for failure in bury)
        return Outcome(retried=len(put_off) - locked, buried=len(bury), postponed=locked, more=more)

    def _policy(self, event_type: str) -> RetryPolicy:
        return self._subscriptions[event_type].retry or self._retry
