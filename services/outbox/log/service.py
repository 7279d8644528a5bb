"""Readers of the event log: each event is read once, however late its transaction commits, and causes before effects.

Guarantees: a consumer's place is a snapshot, which says which transactions had ended when it last looked. A read takes
a new snapshot and returns the events of the transactions that ended in between. This gives

1. **every event once**: in each of the two snapshots a transaction either had ended or had not, and its events are
   returned when the answer changes. A transaction that commits late, whatever its id and its events' positions, is in
   the first read after its commit. Nothing waits for it: a writer that takes an hour delays only its own events;
2. **commit order**: what was committed before a read began comes before what was committed later. Within one read,
   events are ordered by position, which is taken from a sequence when the event is written. If one transaction
   committed before another wrote its event, they are in that order. Only transactions that overlapped may come in
   either order, and then not even the database knows which was first;
3. **order within each aggregate**, as long as its events are written under a lock on it, and **causes first**: an event
   whose writer could see another event has the higher position.

There is no guarantee that two consumers see *unrelated* events in the same order.

Neither event ids nor transaction ids could replace the snapshots. A transaction may get its id long before it waits for
the lock under which it writes, and event ids are made by the clocks of several machines
(`docs/decisions/0010-readers-of-the-log.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.errors import AlreadyExists, NotFound
from services.outbox.log.schemas import Cursor, Lag, Lease, LoggedEvent
from services.outbox.models import NOTHING_SEEN
from services.outbox.origin import service as origin
from services.transaction import Transaction

POSITIONS_PER_READ = 10_000
"""How far one read looks, so that a rare type in a long log does not make the statement slow."""

MOST_COUNTED = 100_000
"""The most unread events that `lags` counts for a consumer: this number means "or more"."""


class Start(StrEnum):
    """Where a consumer starts."""

    beginning = "beginning"
    """At the oldest event that the log still holds."""
    now = "now"
    """At the first event that is committed from now on."""


@dataclass(frozen=True, slots=True)
class LogBatch:
    """The result of a read. `more` says that another read may find something immediately, even if this one is empty."""

    consumer: str
    events: Sequence[LoggedEvent]
    more: bool
    next: Cursor | None
    """Where the consumer is after these events; None if it has not moved."""
    begins: bool = False
    """Whether the consumer had read nothing before: it is new, or was reset to the beginning of the log."""
    stored: Cursor | None = None
    """Where the consumer was before; None if it has not moved."""


async def create(uow: Transaction, consumer: str, start: Start = Start.beginning) -> None:
    """Create a consumer. Raises `AlreadyExists` and `RebaseNeeded`."""
    if not await uow.log.create(consumer, await _start(uow, start)):
        raise AlreadyExists(f"there is already a log consumer {consumer!r}")


async def reset(uow: Transaction, consumer: str, start: Start) -> None:
    """Move a consumer to the beginning of the log or to now, after any running read.

    Raises `NotFound` and `RebaseNeeded`.
    """
    if not await uow.log.reset(consumer, await _start(uow, start)):
        raise _unknown(consumer)


async def delete(uow: Transaction, consumer: str) -> None:
    """Delete a consumer, after any running read: retention no longer waits for it. Raises `NotFound`."""
    if not await uow.log.delete(consumer):
        raise _unknown(consumer)


async def lags(uow: Transaction) -> list[Lag]:
    """How far behind each consumer is."""
    return await uow.log.lags(MOST_COUNTED)


async def read(uow: Transaction, consumer: str, limit: int, types: Sequence[str] | None = None) -> LogBatch:
    """Return up to `limit` of the consumer's next events, only of the given `types` if any are given.

    Act on them and call `advance` in the same transaction: then each takes effect once. The consumer is locked until
    the transaction ends; other readers find nothing meanwhile. A consumer must always ask for the same types: events
    that it skipped are not returned again. Raises `NotFound`, and `RebaseNeeded` if the database came from another
    cluster.

    In a REPEATABLE READ transaction, the new snapshot is the transaction's.
    """
    await origin.check(await uow.session.connection())
    cursor = await uow.log.lock(consumer)
    if cursor is None and not await uow.log.exists(consumer):
        raise _unknown(consumer)
    return await _read(uow, consumer, cursor, limit, types)


async def read_leased(
    uow: Transaction, consumer: str, lease: Lease, limit: int, types: Sequence[str] | None = None
) -> LogBatch | None:
    """As `read`, for the worker that has the lease: the consumer is not locked. Finish with `advance_leased`.

    Returns None if the lease is lost. As long as nothing is new, only `renew` raises `RebaseNeeded`.
    """
    look = await uow.log.look(consumer, lease)
    if look is None:
        return None
    if not look.news:
        return await _read(uow, consumer, None, limit, types)
    await origin.check(await uow.session.connection())
    return await _read(uow, consumer, Cursor(look.seen, look.reading, look.position, look.until), limit, types)


async def renew(uow: Transaction, consumer: str, lease: Lease) -> bool:
    """Keep the lease for its time from now; False if it is lost. Raises `RebaseNeeded`.

    A database from another cluster may seem to have nothing new for ever, so this is checked at each renewal.
    """
    await origin.check(await uow.session.connection())
    return await uow.log.renew(consumer, lease)


async def _read(
    uow: Transaction, consumer: str, cursor: Cursor | None, limit: int, types: Sequence[str] | None
) -> LogBatch:
    if cursor is None:
        return LogBatch(consumer, (), more=False, next=None)
    stored = cursor
    resumed = cursor.reading is not None
    begins = not resumed and cursor.seen == NOTHING_SEEN
    if not resumed:
        opened = await uow.log.open(cursor.seen)
        if opened.first is None:
            # There was something new when the consumer was looked at, but retention has dropped it since.
            return LogBatch(consumer, (), more=False, next=None)
        reading = _without(opened.snapshot, opened.own)
        cursor = replace(cursor, reading=reading, position=opened.first - 1, until=opened.last)
    assert cursor.reading is not None
    assert cursor.until is not None
    until = min(cursor.until, cursor.position + POSITIONS_PER_READ)
    events = await uow.log.page(cursor, until, types, limit)
    position = events[-1].position if len(events) == limit else until
    if position < cursor.until:
        return LogBatch(consumer, events, True, replace(cursor, position=position), begins, stored)
    # If an earlier read took the snapshot, more may have been committed since.
    following = Cursor(cursor.reading, None, position, None)
    return LogBatch(consumer, events, resumed, following, begins, stored)


async def advance(uow: Transaction, batch: LogBatch) -> None:
    """Record that the consumer has read these events. Call it in the transaction that read them."""
    if batch.next is not None:
        await uow.log.advance(batch.consumer, batch.next)


async def advance_leased(uow: Transaction, batch: LogBatch, lease: Lease, own: str) -> bool:
    """Record that the consumer has read these events, and renew the lease; then commit immediately.

    Returns False if the lease is lost, if the consumer has moved since the read, or if this is not the transaction
    `own`, in which the handler began: the caller must not commit then.
    """
    if batch.next is None or batch.stored is None:
        return True
    return await uow.log.advance_leased(batch.consumer, batch.stored, batch.next, lease, own)


async def pause(uow: Transaction, consumer: str, actor: str) -> None:
    """Keep workers from running the consumer. From the commit on, none of them commits a batch. Raises `NotFound`."""
    if not await uow.log.pause(consumer, actor):
        raise NotFound(f"log consumer {consumer!r} does not exist, or has never been run by a worker")


async def resume(uow: Transaction, consumer: str) -> None:
    """Let workers run the consumer again, immediately even after a failure. Raises `NotFound`."""
    if not await uow.log.resume(consumer):
        raise _unknown(consumer)


async def _start(uow: Transaction, start: Start) -> str:
    await origin.check(await uow.session.connection())
    if start is Start.beginning:
        return NOTHING_SEEN
    opened = await uow.log.open(NOTHING_SEEN)
    return _without(opened.snapshot, opened.own)


def _without(snapshot: str, own: int) -> str:
    """The snapshot, with the transaction that took it among the running ones.

    PostgreSQL does not list it there. Unchanged, the snapshot would say that this transaction had ended, and the events
    that it is about to record would count as read.
    """
    oldest, following, running = snapshot.split(":")
    if own >= int(following):
        return snapshot
    ids = sorted({*(int(number) for number in running.split(",") if number), own})
    return f"{min(int(oldest), own)}:{following}:{','.join(map(str, ids))}"


def _unknown(consumer: str) -> NotFound:
    return NotFound(f"log consumer {consumer!r} does not exist")
