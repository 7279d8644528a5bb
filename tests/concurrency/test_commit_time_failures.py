"""An event that fails only at the commit is isolated like any poison: it alone is put off, and the queue continues."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import DUE_NOW, LATER, Tick, TickHandler, Tock, append, drain, effects, processor, rows
from tests.factories import make_user

TOCKS = "SELECT payload ->> 'name' FROM events WHERE type = 'test.tock' ORDER BY 1"
WAITING = "SELECT aggregate, attempts FROM outbox ORDER BY position"
DANGLING = text("""
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT gen_random_uuid(), min(id), max(id), 1, 'order', 'pending', gen_random_uuid(), now() FROM accounts
""")
Spoil = Callable[[UnitOfWork], Awaitable[None]]


async def hold_for_nothing(uow: UnitOfWork) -> None:
    """The foreign key is checked at the commit."""
    await (await uow.session.connection()).execute(DANGLING)


async def take_effect_twice(uow: UnitOfWork) -> None:
    """The key of the effects is also checked at the commit."""
    await (await uow.session.connection()).execute(
        text("INSERT INTO effects (name, number) VALUES ('twice', 0), ('twice', 0)")
    )


async def record_nul(uow: UnitOfWork) -> None:
    """PostgreSQL's jsonb cannot hold U+0000; events are written at the commit."""
    uow.record(Tock(name="a\x00b"))


async def record_half_a_surrogate_pair(uow: UnitOfWork) -> None:
    """It has no UTF-8."""
    uow.record(Tock(name="\ud800"))


async def record_a_name_that_is_too_long(uow: UnitOfWork) -> None:
    """The log accepts an aggregate of at most 100 characters."""
    uow.record(Tock(name="x" * 200))


SPOILS: Sequence[Spoil] = (
    hold_for_nothing,
    take_effect_twice,
    record_nul,
    record_half_a_surrogate_pair,
    record_a_name_that_is_too_long,
)


class SpoilingHandler(TickHandler):
    """Does something that fails at the commit for each tick that is poison."""

    def __init__(self, spoil: Spoil, poison: str) -> None:
        super().__init__()
        self._spoil = spoil
        self._poison = poison

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        for claimed in events:
            if claimed.event.name in self._poison:
                await self._spoil(uow)


def named(names: str) -> list[Tick]:
    return [Tick(name=name) for name in names]


@pytest.fixture
async def shop(ticking: Database) -> Database:
    """With accounts for transfers."""
    await make_user(ticking)
    return ticking


@pytest.mark.parametrize("spoil", SPOILS)
async def test_an_event_that_fails_at_the_commit_is_put_off_alone_and_the_queue_continues(
    shop: Database, spoil: Spoil
) -> None:
    await append(shop, *named("abcdefgh"))
    engine = processor(shop, SpoilingHandler(spoil, "d"), retry=LATER)

    outcomes = await drain(engine)

    assert sum(outcome.processed for outcome in outcomes) == 7
    assert sum(outcome.retried for outcome in outcomes) == 1
    assert sorted(await effects(shop)) == [(name, 0) for name in "abcefgh"]
    assert await rows(shop, TOCKS) == list("abcefgh")
    assert await rows(shop, WAITING) == [("tick/d", 1)]
    assert await rows(shop, "SELECT count(*) FROM outbox WHERE available_at > now() AND last_error <> ''") == [1]
    assert await rows(shop, "SELECT count(*) FROM transfers") == [0]

    # Later events of the same aggregate wait for it, others do not.
    await append(shop, Tick(name="d", number=1), Tick(name="z"))
    await drain(engine)
    assert ("z", 0) in await effects(shop)
    assert await rows(shop, WAITING) == [("tick/d", 1), ("tick/d", 0)]

    # Without the fault, it is processed in its order.
    await rows(shop, DUE_NOW)
    await drain(processor(shop))
    assert [number for name, number in await effects(shop) if name == "d"] == [0, 1]
    assert await rows(shop, WAITING) == []


@pytest.mark.parametrize("spoil", SPOILS)
async def test_an_event_that_keeps_failing_at_the_commit_becomes_a_dead_letter(shop: Database, spoil: Spoil) -> None:
    await append(shop, *named("abc"))

    await drain(processor(shop, SpoilingHandler(spoil, "b"), retry=RetryPolicy(1, 0.001, 0.001)))

    assert await rows(shop, "SELECT aggregate, attempts FROM dead_letters") == [("tick/b", 1)]
    assert sorted(await effects(shop)) == [("a", 0), ("c", 0)]
    assert await rows(shop, WAITING) == []


@pytest.mark.parametrize("spoil", SPOILS)
async def test_several_commit_failures_and_poison_of_other_kinds_in_one_batch_are_put_off(
    shop: Database, spoil: Spoil
) -> None:
    await append(shop, *named("abcdefghij"))
    handler = SpoilingHandler(spoil, "bgh")
    handler.poison = lambda claimed: claimed.event.name in "ch"

    await drain(processor(shop, handler, retry=LATER))

    assert sorted(await effects(shop)) == [(name, 0) for name in "adefij"]
    assert await rows(shop, TOCKS) == list("adefij")
    assert await rows(shop, WAITING) == [(f"tick/{name}", 1) for name in "bcgh"]


async def test_an_event_that_fails_at_the_commit_alone_in_its_batch_is_put_off(shop: Database) -> None:
    await append(shop, *named("a"))
    (outcome,) = await drain(processor(shop, SpoilingHandler(hold_for_nothing, "a"), retry=LATER))
    assert (outcome.processed, outcome.retried) == (0, 1)
    assert await rows(shop, WAITING) == [("tick/a", 1)]
    assert await effects(shop) == []


async def test_hundreds_of_events_with_many_that_fail_at_the_commit_are_all_settled(shop: Database) -> None:
    await append(shop, *(Tick(name=f"{number:03d}") for number in range(200)))

    class EveryTenth(SpoilingHandler):
        async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
            await TickHandler.__call__(self, uow, events)
            if any(int(claimed.event.name) % 10 == 0 for claimed in events):
                await hold_for_nothing(uow)

    await drain(processor(shop, EveryTenth(hold_for_nothing, ""), retry=LATER))

    assert sorted(await effects(shop)) == [(f"{number:03d}", 0) for number in range(200) if number % 10]
    assert await rows(shop, "SELECT count(*) FROM outbox WHERE attempts = 1") == [20]
    assert await rows(shop, "SELECT count(*) FROM outbox") == [20]
