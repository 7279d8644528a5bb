"""Readers of the event log: every event once, however late its transaction commits, and each before what came of it.

What is promised. A consumer's place is a snapshot: which transactions had ended when it last looked. A read takes a new
one, and gives the events of the transactions that ended in between. So

1. **every event once**: whether a transaction had ended is yes or no in each of the two snapshots, and its events are
   given where the answer changes. A transaction that commits late, whatever its id and its events' positions, is in
   the first read after its commit. Nobody waits for it: a writer that takes an hour holds up its own events only;
2. **in the order of commits**: what was committed before a read began comes before what was committed later. Within
   one read events come by position, which is taken from a sequence when the event is written. Two transactions of which
   one committed before the other wrote its event are in that order; only those that overlapped may come in either, and
   then not even the database knows which was first;
3. **so in order for each aggregate** as long as its events are written under a lock on it, and **causes first**: who
   could see an event when writing another took the later position.

Not promised: that two consumers see *unrelated* events in the same order.

Neither ids nor transaction ids would do. A transaction may get its id long before it waits for the lock under which it
writes; ids of events are made by clocks of several machines (`docs/decisions/0010-readers-of-the-log.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.errors import AlreadyExists, NotFound
from services.outbox.log.repository import NOTHING_SEEN
from services.outbox.log.schemas import Cursor, Lag, LoggedEvent
from services.transaction import Transaction

POSITIONS_PER_READ = 10_000
"""How far one read looks, so that a type that is rare in a long log makes no long statement."""

MOST_COUNTED = 100_000
"""Unread events that `lags` counts at most for a consumer: this number means "or more"."""


class Start(StrEnum):
    """Where a consumer begins."""

    beginning = "beginning"
    """With the oldest event that is kept."""
    now = "now"
    """With what commits from now on."""


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What a read gave. `more` says whether the next may find something at once; it may be true without any events."""

    consumer: str
    events: Sequence[LoggedEvent]
    more: bool
    next: Cursor | None
    """Where the consumer is once it has these; None where it stays."""


async def create(uow: Transaction, consumer: str, start: Start = Start.beginning) -> None:
    """Make a consumer. Raises `AlreadyExists`."""
    if not await uow.log.create(consumer, await _start(uow, start)):
        raise AlreadyExists(f"there is a log consumer {consumer!r} already")


async def reset(uow: Transaction, consumer: str, start: Start) -> None:
    """Let a consumer begin again. Waits until nobody is reading for it. Raises `NotFound`."""
    if not await uow.log.reset(consumer, await _start(uow, start)):
        raise _unknown(consumer)


async def delete(uow: Transaction, consumer: str) -> None:
    """Forget a consumer: retention no longer waits for it. Raises `NotFound`."""
    if not await uow.log.delete(consumer):
        raise _unknown(consumer)


async def lags(uow: Transaction) -> list[Lag]:
    """How far behind each consumer is."""
    return await uow.log.lags(MOST_COUNTED)


async def read(uow: Transaction, consumer: str, limit: int, types: Sequence[str] | None = None) -> LogBatch:
    """The next events for a consumer, `limit` at most, of the given types if any are given.

    Do what they ask for and call `advance` in the same transaction: then each takes effect once. The consumer is this
    transaction's until it ends; for everybody else there is nothing to read meanwhile. A consumer always asks for the
    same types: what it passed over does not come again. Raises `NotFound`.

    In a transaction that is REPEATABLE READ the new snapshot is the transaction's.
    """
    cursor = await uow.log.lock(consumer)
    if cursor is None:
        if not await uow.log.exists(consumer):
            raise _unknown(consumer)
        return LogBatch(consumer, (), more=False, next=None)
    resumed = cursor.reading is not None
    if not resumed:
        opened = await uow.log.open(cursor.seen)
        if opened.first is None:
            # It was new when we asked for the lock, and retention has dropped it since.
            return LogBatch(consumer, (), more=False, next=None)
        reading = _without(opened.snapshot, opened.own)
        cursor = replace(cursor, reading=reading, position=opened.first - 1, until=opened.last)
    assert cursor.reading is not None
    assert cursor.until is not None
    until = min(cursor.until, cursor.position + POSITIONS_PER_READ)
    events = await uow.log.page(cursor, until, types, limit)
    position = events[-1].position if len(events) == limit else until
    if position < cursor.until:
        return LogBatch(consumer, events, more=True, next=replace(cursor, position=position))
    # All that an earlier read had found is read: more may have been committed since.
    return LogBatch(consumer, events, more=resumed, next=Cursor(cursor.reading, None, position, None))


async def advance(uow: Transaction, batch: LogBatch) -> None:
    """Store that the consumer has these events; part of the transaction that read them."""
    if batch.next is not None:
        await uow.log.advance(batch.consumer, batch.next)


async def _start(uow: Transaction, start: Start) -> str:
    if start is Start.beginning:
        return NOTHING_SEEN
    opened = await uow.log.open(NOTHING_SEEN)
    return _without(opened.snapshot, opened.own)


def _without(snapshot: str, own: int) -> str:
    """The snapshot, with the transaction that took it among those that have not ended.

    PostgreSQL leaves it out of its own list of running ones. As it stands, the snapshot would say that this transaction
    had ended, and the events that it is about to record would be taken for read.
    """
    oldest, following, running = snapshot.split(":")
    if own >= int(following):
        return snapshot
    ids = sorted({*(int(number) for number in running.split(",") if number), own})
    return f"{min(int(oldest), own)}:{following}:{','.join(map(str, ids))}"


def _unknown(consumer: str) -> NotFound:
    return NotFound(f"there is no log consumer {consumer!r}")
