"""Consumers of the event log that workers run: what they read, and one batch of one of them.

A batch is one transaction: it reads the next events, calls the handler, and stores the consumer's place. So the
handler's effects in the database happen exactly once. `worker/follower.py` decides which worker runs it, and when.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias
from uuid import UUID

from services.outbox import traces
from services.outbox.events import Event
from services.outbox.log import service as log
from services.outbox.log.schemas import Lease, LoggedEvent
from services.outbox.log.service import LogBatch, Start
from services.outbox.subscription import HandlerBroken, TimeLimitTooLong, TransactionT, lent_to
from services.transaction import Transaction

LogHandler: TypeAlias = Callable[[TransactionT, Sequence[LoggedEvent]], Awaitable[None]]
"""Handles events in the order of the log, inside the transaction that stores the consumer's place; it cannot commit.

If it raises, its work is rolled back, and the batch is tried again in parts: an event that fails alone is tried until
it succeeds, and the consumer waits for it.
"""


class LeaseLost(Exception):
    """The batch must not be committed: another worker may run the consumer now, or it was paused, reset or deleted.

    Or an earlier batch of this worker was committed after all, although its commit had been given up.
    """


@dataclass(frozen=True, slots=True)
class Consumer(Generic[TransactionT]):
    """A consumer of the log, as listed in `services/subscriptions.py`.

    Without `types` it gets all events; they must not change as long as the consumer exists. `batch` is the most events
    that the handler gets at a time, `time_limit` how many seconds it may take for them. `on_start` is called in the
    transaction of the first read from the beginning of the log: it deletes what earlier reads have left.
    """

    name: str
    handler: LogHandler[TransactionT]
    types: Sequence[type[Event]] | None = None
    start: Start = Start.beginning
    batch: int = 500
    time_limit: float = 20.0
    on_start: Callable[[TransactionT], Awaitable[None]] | None = None


class Known(Protocol):
    """A consumer of any kind (`services/outbox/sink.py` has another one)."""

    @property
    def name(self) -> str: ...

    @property
    def start(self) -> Start: ...

    @property
    def time_limit(self) -> float: ...


def check_consumers(consumers: Sequence[Known], lease: float, idle_limit: float) -> None:
    """Raises `TimeLimitTooLong` unless each batch ends within half a lease and the limit of an idle transaction.

    Both limits are seconds. A batch that outlasts them would be rolled back each time. Raises `ValueError` if two
    consumers have the same name.
    """
    names = sorted(one.name for one in consumers)
    if len(set(names)) < len(names):
        raise ValueError(f"two consumers of the log have the same name: {', '.join(names)}")
    for one in consumers:
        if one.time_limit > lease / 2 or one.time_limit >= idle_limit:
            raise TimeLimitTooLong(
                f"a batch of the log consumer {one.name!r} may take {one.time_limit:g} s. That must be at most "
                f"{lease / 2:g} s (half a lease), and less than the {idle_limit:g} s of "
                "WAYBILL_DATABASE_IDLE_IN_TRANSACTION_TIMEOUT"
            )


async def claim(uow: Transaction, consumer: Known, owner: UUID, seconds: float) -> Lease | None:
    """Take the lease on the consumer, which is created if it does not exist. None if it cannot be run now."""
    lease = await uow.log.claim(consumer.name, owner, seconds)
    if lease is None and not await uow.log.exists(consumer.name):
        await log.create(uow, consumer.name, consumer.start)
        lease = await uow.log.claim(consumer.name, owner, seconds)
    return lease


async def run_batch(uow: TransactionT, consumer: Consumer[TransactionT], lease: Lease, limit: int) -> LogBatch:
    """Handle up to `limit` of the consumer's next events. The caller commits immediately.

    Raises `LeaseLost`, `RebaseNeeded`, what the handler raises, which includes `NotYours` if it tries to end the
    transaction, and `HandlerBroken` if it has ended it all the same or raises what is not an `Exception`.
    """
    types = None if consumer.types is None else [event.type for event in consumer.types]
    batch = await log.read_leased(uow, consumer.name, lease, limit, types)
    if batch is None:
        raise lost(consumer.name)
    if batch.next is None:
        return batch
    own = await uow.log.own()
    uow.act_as(f"job:{consumer.name}")
    async with lent_to(uow, f"the handler of the log consumer {consumer.name!r}"):
        if batch.begins and consumer.on_start is not None:
            await consumer.on_start(uow)
        if batch.events:
            with traces.of_log_batch(consumer.name, batch.events):
                await consumer.handler(uow, batch.events)
    # Before the place, whose row is locked from then on.
    await uow.flush()
    if await log.advance_leased(uow, batch, lease, own):
        return batch
    if await uow.log.own() != own:
        raise HandlerBroken(f"the handler of the log consumer {consumer.name!r} ended the transaction")
    raise lost(consumer.name)


def lost(consumer: str) -> LeaseLost:
    """The error for a batch of this consumer that must not be committed."""
    return LeaseLost(
        f"the lease on the log consumer {consumer!r} is lost: another worker runs it, an operator changed it, or "
        "a late commit has moved it"
    )
