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
from uuid import UUID

from services.errors import AlreadyExists, Conflict, NotFound
from services.outbox.log.schemas import Bookmark, Cursor, Extent, Lag, Lease, LoggedEvent
from services.outbox.log.schemas import Start as Start
from services.outbox.models import NOTHING_SEEN
from services.outbox.origin import service as origin
from services.transaction import Transaction

POSITIONS_PER_READ = 10_000
"""How far one read looks, so that a rare type in a long log does not make the statement slow."""

MOST_COUNTED = 10_000
"""The most unread events that `lags` counts for a consumer: this number means "or more"."""


LOOKED_BACK = 50_000
"""How many events `tail` looks at, so that a rare type in a long log does not make the statement slow."""


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

    Raises `NotFound`, `RebaseNeeded`, and `Conflict` if its place is kept in another database.
    """
    if await uow.log.reset(consumer, await _start(uow, start)):
        return
    if await uow.log.exists(consumer):
        raise Conflict(
            f"the place of the log consumer {consumer!r} is kept in another database and cannot be reset alone: "
            "rebuild what the consumer writes there"
        )
    raise _unknown(consumer)


async def delete(uow: Transaction, consumer: str) -> None:
    """Delete a consumer, after any running read: retention no longer waits for it. Raises `NotFound`."""
    if not await uow.log.delete(consumer):
        raise _unknown(consumer)


async def lags(uow: Transaction, most: int | None = None) -> list[Lag]:
    """How far behind each consumer is, counting up to `most` events for each; by default `MOST_COUNTED`."""
    return await uow.log.lags(MOST_COUNTED if most is None else most)


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
    resumed = cursor.reading is not None
    begins = not resumed and cursor.seen == NOTHING_SEEN
    page = await opened(uow, cursor)
    if page is None:
        return LogBatch(consumer, (), more=False, next=None)
    events = await uow.log.page(page.cursor, page.until, types, limit)
    following = page.following(events[-1].position if len(events) == limit else None)
    # If an earlier read took the snapshot, more may have been committed since.
    more = resumed or following.reading is not None
    return LogBatch(consumer, events, more, following, begins, cursor)


@dataclass(frozen=True, slots=True)
class Page:
    """The part of the log that one read looks at: what is new to the cursor, up to the position `until`."""

    cursor: Cursor
    until: int

    def following(self, last: int | None) -> Cursor:
        """Where the consumer is after this read. `last` is the last event's position if the read was full."""
        assert self.cursor.until is not None
        position = self.until if last is None else last
        if position < self.cursor.until:
            return replace(self.cursor, position=position)
        assert self.cursor.reading is not None
        return Cursor(self.cursor.reading, None, position, None)


async def opened(uow: Transaction, cursor: Cursor) -> Page | None:
    """The next page after the cursor, with a new snapshot unless one is being read. None if there is nothing new."""
    if cursor.reading is None:
        found = await uow.log.open(cursor.seen)
        if found.first is None:
            # There was something new when the consumer was looked at, but retention has dropped it since.
            return None
        reading = _without(found.snapshot, found.own)
        cursor = replace(cursor, reading=reading, position=found.first - 1, until=found.last)
    assert cursor.until is not None
    return Page(cursor, min(cursor.until, cursor.position + POSITIONS_PER_READ))


async def tail(
    uow: Transaction, limit: int, types: Sequence[str] | None = None, aggregate: str | None = None
) -> tuple[Sequence[LoggedEvent], Bookmark]:
    """The last events of the log, and where to continue with `follow` without missing one.

    Only those of the last `LOOKED_BACK` events that match are found. Raises `RebaseNeeded`.
    """
    here = await _start(uow, Start.now)
    _, timeline = await uow.log.look_from_memory(here)
    events = await uow.log.tail(here, LOOKED_BACK, types, aggregate, limit) if limit else []
    return events, Bookmark(Cursor(here, None, 0, None), timeline)


async def follow(
    uow: Transaction, here: Bookmark, limit: int, types: Sequence[str] | None = None
) -> tuple[Sequence[LoggedEvent], Bookmark]:
    """The next events after a place that the caller keeps in memory, and the place after them.

    Nothing is stored, so retention does not wait for the caller. Raises `Conflict` if another server has become the
    primary, where the place may be wrong, and `RebaseNeeded`.
    """
    news, timeline = await uow.log.look_from_memory(here.cursor.seen)
    if timeline != here.timeline:
        raise Conflict("another server has become the primary, or the database was restored: begin again")
    if here.cursor.reading is None and not news:
        return (), here
    await origin.check(await uow.session.connection())
    batch = await _read(uow, "", here.cursor, limit, types)
    return batch.events, here if batch.next is None else Bookmark(batch.next, timeline)


async def restart_sink(uow: Transaction, consumer: str, owner: UUID, seconds: float) -> tuple[UUID, Lease, Extent]:
    """Begin another series of a consumer whose place is kept in another database, which has to start over, too.

    Creates the consumer if it does not exist. Returns the series, the lease, and what the log holds: until the consumer
    has read it, none of it is dropped. Raises `Conflict` if the consumer is paused, and `RebaseNeeded`.
    """
    beginning = await _start(uow, Start.beginning)
    if not await uow.log.reset(consumer, beginning, is_sink=True):
        if await uow.log.create(consumer, beginning):
            await uow.log.add_sink(consumer)
        else:
            raise Conflict(f"the place of the log consumer {consumer!r} is kept in this database")
    series = await uow.log.restart_sink(consumer)
    lease = await uow.log.claim(consumer, owner, seconds)
    if lease is None:
        raise Conflict(f"the log consumer {consumer!r} is paused: run `waybill outbox consumers resume {consumer}`")
    return series, lease, await uow.log.extent()


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
