"""Subscriptions: which handler processes the events of a type, and by which rules."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from services.logs import Shown, bind_from, unbind
from services.outbox.events import Claimed, EventT, batch_ids
from services.outbox.policy import OnDeath, RetryPolicy
from services.tracing import span
from services.transaction import Transaction

TransactionT = TypeVar("TransactionT", bound=Transaction)

Verdicts: TypeAlias = Sequence[Exception | None] | None
"""What a handler may return: for each event of its batch, in order, None if it is done or the error if it is not."""

Handler = Callable[[TransactionT, Sequence[Claimed[EventT]]], Awaitable[Verdicts]]
"""Processes a batch of events of one type inside the transaction; it never commits.

It may be called several times for an event before one of the calls is committed. The batch may hold several events of
one aggregate, in their order. If the handler raises, its work is rolled back. If it returns, it has processed all
events except those it returns an exception for; it must not have written anything for those.
"""


class Discarded(NamedTuple):
    """An event that an operator has discarded in this transaction: no handler will ever process it."""

    type: str
    event_id: UUID
    aggregate: str


OnDiscard = Callable[[TransactionT, Sequence[Discarded]], Awaitable[None]]
"""Updates the aggregates of discarded events, in the transaction that discards the events.

It does not get the payload, since an event is often discarded because its payload cannot be read.
"""

Explain = Callable[[TransactionT, str], Awaitable[str | None]]
"""Says what will happen to an aggregate that has no waiting event; None if it does not know the aggregate.

It gets what an operator asked about: the aggregate (`kind/id`), or only its id.
"""


class HandlerBroken(Exception):
    """The handler broke the rules, for example by verdicts that do not fit the events of its batch."""


class TimedOut(HandlerBroken):
    """The handler did not finish within its time limit."""


class TimeLimitTooLong(Exception):
    """The worker cannot start: the database would end a transaction before its handler reaches its time limit."""


@dataclass(frozen=True, slots=True)
class Subscription(Generic[TransactionT, EventT]):
    """An event type, the handler that processes it, and what happens to events that fail or are discarded.

    Each type has one handler.

    `retry` and `time_limit` (seconds for one call of the handler) default to the processor's.
    `plain_sql` is for a handler that adds no ORM objects: its savepoints then cost a sixth as much.
    `on_discard` and `explain` are for operators; without them, a discard leaves the aggregate as it is.
    """

    event: type[EventT]
    handler: Handler[TransactionT, EventT]
    retry: RetryPolicy | None = None
    on_death: OnDeath = OnDeath.block
    time_limit: float | None = None
    plain_sql: bool = False
    on_discard: OnDiscard[TransactionT] | None = None
    explain: Explain[TransactionT] | None = None


AnySubscription: TypeAlias = Subscription[TransactionT, Any]
"""A subscription, whatever its event."""


def longest_limit(subscriptions: Sequence[AnySubscription[TransactionT]], time_limit: float) -> float:
    """The longest time limit of any of them, in seconds. `time_limit` applies to those without their own."""
    return max((subscription.time_limit or time_limit for subscription in subscriptions), default=time_limit)


def check_time_limits(
    subscriptions: Sequence[AnySubscription[TransactionT]], time_limit: float, idle_limit: float
) -> None:
    """Raises `TimeLimitTooLong` unless all time limits are below the database's limit for idle transactions (seconds).

    A handler that waits for something other than the database would lose its connection each time, and no attempt would
    be counted. `time_limit` applies to subscriptions without their own.
    """
    for subscription in subscriptions:
        limit = subscription.time_limit or time_limit
        if limit >= idle_limit:
            raise TimeLimitTooLong(
                f"the handler of {subscription.event.type!r} may take {limit:g} s, but the database ends transactions "
                f"that are idle for {idle_limit:g} s. Set WAYBILL_DATABASE_IDLE_IN_TRANSACTION_TIMEOUT to more than "
                f"{limit:g}, or lower the subscription's time_limit or WAYBILL_OUTBOX_TIME_LIMIT."
            )


async def handle(
    transaction: TransactionT, subscription: AnySubscription[TransactionT], events: Sequence[Claimed[Any]], limit: float
) -> Verdicts:
    """Run the handler on the events, as the actor of what it writes.

    Raises what it raises, and `HandlerBroken` if it breaks the rules.
    """
    name = subscription.event.type
    transaction.act_as(f"job:{name}")
    bound = bind_from(partial(batch_ids, name, events))
    try:
        with span(f"handle {name}", attributes={"messaging.batch.message_count": len(events)}):
            async with lent_to(transaction, f"the handler of {name!r}"), asyncio.timeout(limit) as timer:
                verdicts = await subscription.handler(transaction, events)
    except TimeoutError as late:
        if not timer.expired():
            raise
        raise TimedOut(f"the handler of {name!r} did not finish within {limit:g} s for {len(events)} events") from late
    finally:
        unbind(bound)
    return None if verdicts is None else _checked(name, events, verdicts)


@asynccontextmanager
async def lent_to(transaction: Transaction, borrower: str) -> AsyncIterator[None]:
    """Lend the transaction to the block, which runs the code of the `borrower`. Raises what it raises.

    An error that is not an `Exception` would end the worker's loop, and not only fail the events. So it is raised as a
    `HandlerBroken`, except for Ctrl+C, and for a `CancelledError` after this task was cancelled.
    """
    task = asyncio.current_task()
    cancelled_before = task.cancelling() if task else 0
    try:
        async with transaction.lent():
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling() > cancelled_before:
            raise
        raise HandlerBroken(f"{borrower} raised {Shown(error)!r}, which is not an Exception") from error


def _checked(name: str, events: Sequence[Claimed[Any]], returned: Sequence[Exception | None]) -> Verdicts:
    verdicts = tuple(returned)
    if len(verdicts) != len(events):
        raise HandlerBroken(f"the handler of {name!r} returned {len(verdicts)} verdicts for {len(events)} events")
    failed: set[str] = set()
    for event, error in zip(events, verdicts, strict=True):
        if not isinstance(error, Exception | None):
            raise HandlerBroken(f"the handler of {name!r} returned a {type(error).__qualname__} as a verdict")
        if error is not None:
            failed.add(event.aggregate)
        elif event.aggregate in failed:
            raise HandlerBroken(f"the handler of {name!r} continued with {event.aggregate} after an event that failed")
    return verdicts
