"""Log consumers whose effects are in another database (the sink), which stores their place with the effects.

A batch has three steps:

1. read the place from the sink;
2. in one transaction of the log's database: move the consumer's row to that place, count the read, and gather what the
   next events come to. Commit it;
3. in one transaction of the sink: store the effects and the new place, provided that the place is still the one of
   step 1.

So each event takes effect once, whatever is killed in between and however many workers try. The row in `log_consumers`
is never ahead of what the sink has committed, so retention keeps what the sink still needs. Reads are numbered, and a
number is committed before the sink can store it. So each of the two databases may be restored to an earlier state:

- the sink has a number that was never handed out, or the last number with another id: the log's database was restored,
  has lost transactions in a failover, or is another one. Its transaction ids may since have been used again, so the
  batch is refused with `RebuildNeeded`;
- the sink has a number before the one in the row: the sink was restored. The row is moved back, and the sink catches
  up. If the log has dropped events meanwhile that the sink no longer has, the batch is refused, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.fields import new_id
from services.outbox.consumers import Consumer, lost, run_batch
from services.outbox.events import Event
from services.outbox.log import service as log
from services.outbox.log.schemas import Cursor, Lease, Place, SinkState
from services.outbox.log.service import LogBatch, Page, Start
from services.outbox.models import NOTHING_SEEN
from services.outbox.origin import service as origin
from services.outbox.subscription import TransactionT
from services.startup import reason_of
from services.transaction import Transaction

PATIENCE = 5.0
"""Time limit for reading the place from the sink, in seconds."""

BEGINNING = Cursor(NOTHING_SEEN, None, 0, None)

FoundT = TypeVar("FoundT")


class SinkUnusable(Exception):
    """The sink cannot be used now, whatever the next events are. The message says why and what to do."""


class RebuildNeeded(SinkUnusable):
    """What the sink holds is not a part of this log any more, or cannot be completed from it."""


class SinkTransaction(Protocol):
    """One transaction of the sink. It rolls back unless `commit` was called."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def place(self, consumer: str) -> Place | None:
        """How far the consumer has come; None if it has read nothing. Raises `SinkUnusable`."""
        ...

    async def move(self, consumer: str, before: Place | None, after: Place) -> bool:
        """Store the place, and lock it until the transaction ends. Returns False if it is not `before` any more."""
        ...

    async def commit(self) -> None: ...


SinkT = TypeVar("SinkT", bound=SinkTransaction)


@dataclass(frozen=True, slots=True)
class Gathered(Generic[FoundT]):
    """What the events of a page come to. `last` is the position of the last one; None if there are none."""

    found: FoundT
    number: int
    last: int | None


@dataclass(frozen=True, slots=True)
class SinkConsumer(Generic[TransactionT, SinkT, FoundT]):
    """A consumer of the log that writes to another database.

    `gather` reads at most so many events of a page, in the order of positions, and what they refer to, in a transaction
    of the log's database. `apply` stores that in the sink; neither commits. `types` must not change as long as the
    consumer exists. `batch` is the most events at a time, `time_limit` how many seconds they may take. `mend` is the
    command that starts over.
    """

    name: str
    types: Sequence[type[Event]]
    gather: Callable[[TransactionT, Page, Sequence[str], int], Awaitable[Gathered[FoundT]]]
    open_sink: Callable[[], SinkT]
    apply: Callable[[SinkT, FoundT], Awaitable[None]]
    mend: str
    batch: int = 5000
    time_limit: float = 20.0

    @property
    def start(self) -> Start:
        return Start.beginning


AnyConsumer: TypeAlias = Consumer[TransactionT] | SinkConsumer[TransactionT, Any, Any]


async def run(
    open_work: Callable[[], TransactionT], consumer: AnyConsumer[TransactionT], lease: Lease, limit: int
) -> LogBatch:
    """Handle up to `limit` of the consumer's next events, and commit.

    Raises what `run_batch` raises, and for a consumer with a sink `SinkUnusable`.
    """
    if isinstance(consumer, SinkConsumer):
        return await _run_sink_batch(open_work, consumer, lease, limit)
    async with open_work() as uow:
        batch = await run_batch(uow, consumer, lease, limit)
        await uow.commit()
    return batch


async def _run_sink_batch(
    open_work: Callable[[], TransactionT],
    consumer: SinkConsumer[TransactionT, SinkT, FoundT],
    lease: Lease,
    limit: int,
) -> LogBatch:
    before = await _place(consumer)
    async with open_work() as uow:
        read = await _hand_out(uow, consumer, lease, before, limit)
        await uow.commit()
    if read is None:
        return LogBatch(consumer.name, (), more=False, next=None)
    after, found = read
    async with consumer.open_sink() as sink:
        if not await sink.move(consumer.name, before, after):
            raise lost(consumer.name)
        await consumer.apply(sink, found)
        await sink.commit()
    # The next look moves the consumer's row.
    return LogBatch(consumer.name, (), more=True, next=after.cursor)


async def _place(consumer: SinkConsumer[TransactionT, SinkT, FoundT]) -> Place | None:
    try:
        async with asyncio.timeout(PATIENCE), consumer.open_sink() as sink:
            return await sink.place(consumer.name)
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise SinkUnusable(
            f"the database of the log consumer {consumer.name!r} cannot be used: {reason_of(error)}"
        ) from error


async def _hand_out(
    uow: TransactionT,
    consumer: SinkConsumer[TransactionT, SinkT, FoundT],
    lease: Lease,
    before: Place | None,
    limit: int,
) -> tuple[Place, FoundT] | None:
    """The place after the next read, and what was found; None if there is nothing new."""
    await origin.check(await uow.session.connection())
    cursor = BEGINNING if before is None else before.cursor
    state = await _state(uow, consumer.name, lease, cursor)
    place = before or Place(state.series, 0, None, cursor)
    if _is_foreign(place, state):
        raise RebuildNeeded(
            f"what the log consumer {consumer.name!r} has stored does not continue this event log (was one of the two "
            f"databases restored or replaced?): {consumer.mend}"
        )
    page = await log.opened(uow, cursor) if state.news else None
    if page is None and place.number == state.stored and not state.failed:
        return None
    read_id = None if page is None else new_id()
    handed = await uow.log.hand_out(
        consumer.name,
        lease,
        state,
        place,
        read_id=read_id,
        clear=page is None or place.number > state.stored,
    )
    if handed is None:
        raise lost(consumer.name)
    number, whole = handed
    if place.number < state.stored and not whole:
        raise RebuildNeeded(
            f"what the log consumer {consumer.name!r} has stored was restored to an earlier state, and the log has "
            f"dropped events since that would be missing there: {consumer.mend}"
        )
    if page is None:
        return None
    # After the row was moved: what the log holds now, it keeps.
    gathered = await consumer.gather(uow, page, [event.type for event in consumer.types], limit)
    following = page.following(gathered.last if gathered.number == limit else None)
    return Place(state.series, number, read_id, following), gathered.found


def _is_foreign(place: Place, state: SinkState) -> bool:
    """Whether the log's database has not handed out the read that the place comes after."""
    if place.series != state.series or place.number > state.reads:
        return True
    return place.number == state.reads > 0 and place.read_id != state.last_read


async def _state(uow: Transaction, name: str, lease: Lease, cursor: Cursor) -> SinkState:
    state = await uow.log.look_at_sink(name, lease, cursor)
    if state is None and await uow.log.holds(name, lease):
        await uow.log.add_sink(name)
        state = await uow.log.look_at_sink(name, lease, cursor)
    if state is None:
        raise lost(name)
    return state
