"""Handlers that need much of their time limit: they get as many events as they can process, and none is blamed."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.database import Database
from services.outbox.engine.service import Processor
from services.outbox.engine.window import Pace
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import DUE_NOW, LATER, Tick, TickHandler, append, drain, effects, replay_letter, rows
from worker.context import processing_options

LIMIT = 1.0


class Slow(TickHandler):
    """Takes `seconds` for each event, or only for those with the given names."""

    def __init__(self, seconds: float, named: str = "") -> None:
        super().__init__()
        self.seconds = seconds
        self._named = named

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        await asyncio.sleep(self.seconds * sum(claimed.event.name.startswith(self._named) for claimed in events))


def engine(
    database: Database, handler: Any, *, plain: bool = True, retry: RetryPolicy = LATER
) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler, plain_sql=plain)],
        retry=retry,
        batch_size=100,
        time_limit=LIMIT,
    )


@pytest.mark.parametrize("careful", [False, True], ids=["plain", "in savepoints"])
async def test_a_handler_slower_than_its_share_of_the_limit_processes_everything_and_nothing_fails(
    ticking: Database, careful: bool
) -> None:
    handler = Slow(0.3)
    slow = engine(ticking, handler)
    if careful:
        await append(ticking, Tick(name="bad"))
        handler.poison = lambda claimed: claimed.event.name == "bad"
        await drain(slow)
    await append(ticking, *(Tick(name=f"n{number}") for number in range(8)))

    outcomes = await drain(slow)

    assert sorted(await effects(ticking)) == sorted((f"n{number}", 0) for number in range(8))
    assert sum(outcome.retried + outcome.buried for outcome in outcomes) == 0
    # Each size was tried once more at most, and no batch that had timed out was tried again whole.
    sizes = [len(batch) for batch in handler.batches]
    assert sizes.count(8) == 1
    assert sizes.count(4) == 1


async def test_a_single_event_gets_the_whole_limit_even_if_others_of_its_batch_fail(ticking: Database) -> None:
    handler = Slow(0.7 * LIMIT, named="slow")
    handler.poison = lambda claimed: claimed.event.name.startswith("bad")
    await append(ticking, *(Tick(name=name) for name in ("bad0", "bad1", "slow", "bad2")))

    outcomes = await drain(engine(ticking, handler))

    assert await effects(ticking) == [("slow", 0)]
    assert sum(outcome.retried for outcome in outcomes) == 3


async def test_an_event_that_hangs_is_isolated_and_counted_once_and_its_neighbours_take_effect(
    ticking: Database,
) -> None:
    handler = Slow(60.0, named="hangs")
    await append(ticking, *(Tick(name=name) for name in ("a", "b", "hangs", "c", "d")))

    outcomes = await drain(engine(ticking, handler))

    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0), ("c", 0), ("d", 0)]
    assert await rows(ticking, "SELECT aggregate, attempts FROM outbox") == [("tick/hangs", 1)]
    (error,) = await rows(ticking, "SELECT last_error FROM outbox")
    assert "did not finish within 1 s for 1 events" in error
    assert sum(outcome.retried for outcome in outcomes) == 1
    # It was tried alone once only.
    assert [[tick.name for tick in batch] for batch in handler.batches].count(["hangs"]) == 1


async def test_a_time_out_that_another_worker_has_counted_is_not_counted_again(ticking: Database) -> None:
    handler = Slow(60.0)
    once = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)
    one, other = engine(ticking, handler, retry=once), engine(ticking, handler, retry=once)
    await append(ticking, Tick(name="hangs"))
    # It times out, and before this worker claims it again, another one tries it and buries it.
    assert (await one.run_once()).more
    assert sum(outcome.buried for outcome in await drain(other)) == 1
    await one.run_once()
    handler.seconds = 0.0
    async with UnitOfWork(ticking.write) as uow:
        assert await replay_letter(uow, 1)
        await uow.commit()

    await drain(one)

    assert await effects(ticking) == [("hangs", 0)]


async def test_the_loops_of_a_worker_find_out_together_how_many_events_a_handler_can_process(
    ticking: Database, settings: Settings
) -> None:
    handler = Slow(0.3)
    options = processing_options(settings.model_copy(update={"outbox_time_limit": LIMIT}))
    one, other = (
        Processor(lambda: UnitOfWork(ticking.write), [Subscription(Tick, handler, plain_sql=True)], **options)
        for _ in range(2)
    )
    await append(ticking, *(Tick(name=f"n{number}") for number in range(8)))

    await one.run_once()
    await other.run_once()

    assert [len(batch) for batch in handler.batches] == [8, 4]


async def test_an_event_that_hangs_although_it_is_the_only_one_is_tried_once_for_each_attempt(
    ticking: Database,
) -> None:
    handler = Slow(60.0, named="hangs")
    await append(ticking, Tick(name="hangs"))
    hanging = engine(ticking, handler)
    await drain(hanging)
    assert len(handler.batches) == 1
    assert await rows(ticking, "SELECT aggregate, attempts FROM outbox") == [("tick/hangs", 1)]
    await rows(ticking, DUE_NOW)
    await drain(hanging)
    assert len(handler.batches) == 2
    assert await rows(ticking, "SELECT aggregate, attempts FROM outbox") == [("tick/hangs", 2)]


async def test_a_transaction_begins_no_event_after_half_the_limit(ticking: Database) -> None:
    handler = Slow(0.3)
    await append(ticking, *(Tick(name=f"n{number}") for number in range(6)))
    # Each is tried on its own, since it has failed before.
    await rows(ticking, "UPDATE outbox SET attempts = 1, waits = 'retry', available_at = now()")
    slow = engine(ticking, handler)
    outcomes = await drain(slow)
    assert max(outcome.processed for outcome in outcomes) <= 3
    assert outcomes[0].more
    assert sum(outcome.processed for outcome in outcomes) == 6
    assert sum(outcome.retried for outcome in outcomes) == 0


async def test_batches_grow_again_once_the_handler_is_fast(ticking: Database) -> None:
    handler = Slow(0.3)
    slow = engine(ticking, handler)
    await append(ticking, *(Tick(name=f"n{number}") for number in range(4)))
    await drain(slow)
    assert len(handler.batches[-1]) <= 2
    handler.seconds = 0.0
    handler.batches.clear()
    await append(ticking, *(Tick(name=f"m{number}") for number in range(300)))

    await drain(slow)

    sizes = [len(batch) for batch in handler.batches]
    assert sum(sizes) == 300
    assert max(sizes) == 100
    assert len(sizes) < 10


def test_the_pace_halves_on_a_time_out_and_aims_at_half_the_limit() -> None:
    pace = Pace()
    assert pace.most("a") > 10_000
    pace.finished("a", 500, 0.4)
    assert pace.most("a") > 10_000
    pace.halve("a", 500)
    assert pace.most("a") == 250
    assert pace.most("b") > 10_000
    pace.halve("a", 250)
    assert pace.most("a") == 125
    # 100 events took all of the limit: 50 take half.
    pace.finished("a", 100, 1.0)
    assert pace.most("a") == 50
    # A smaller batch says nothing about a larger one.
    pace.finished("a", 10, 0.001)
    assert pace.most("a") == 50
    pace.finished("a", 50, 0.25)
    assert pace.most("a") == 100
    pace.finished("a", 100, 0.0)
    assert pace.most("a") == 800
    for _ in range(3):
        pace.finished("a", pace.most("a"), 0.0)
    assert pace.most("a") > 10_000
    pace.halve("a", 1)
    assert pace.most("a") == 1
