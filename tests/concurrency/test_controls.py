"""Operators' settings for a type, and deferred events."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

import pytest

from services.database import Database
from services.fields import now
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import DUE_NOW, LATER, Tick, TickHandler, append, drain, effects, processor, rows


class Spark(Tick):
    type: ClassVar[str] = "test.spark"


async def test_a_paused_type_waits_while_others_do_not_and_continues_when_resumed(ticking: Database) -> None:
    both = Processor(
        lambda: UnitOfWork(ticking.write),
        [Subscription(Tick, TickHandler()), Subscription(Spark, TickHandler())],
        retry=LATER,
        batch_size=10,
    )
    await append(ticking, Tick(name="a"), Spark(name="b"))
    await rows(ticking, "INSERT INTO outbox_types (type, paused) VALUES ('test.tick', true)")
    await drain(both)
    assert await effects(ticking) == [("b", 0)]
    assert await both.look() == (False, None)

    await rows(ticking, "UPDATE outbox_types SET paused = false")
    assert (await both.look())[0]
    await drain(both)
    assert await effects(ticking) == [("b", 0), ("a", 0)]


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (2, 2), (None, 3)])
async def test_no_more_batches_of_a_type_run_at_once_than_its_limit(
    ticking: Database, limit: int | None, at_once: int
) -> None:
    await append(ticking, *(Tick(name=f"{number:02d}") for number in range(30)))
    await rows(ticking, "INSERT INTO outbox_types (type, max_batches) VALUES ('test.tick', :limit)", limit=limit)
    running, most, held = 0, 0, asyncio.Event()

    async def count(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        nonlocal running, most
        await TickHandler()(uow, events)
        running += 1
        most = max(most, running)
        if most == at_once:
            held.set()
        await held.wait()
        # Time enough for one batch too many.
        await asyncio.sleep(0.1)
        running -= 1

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(processor(ticking, count, batch_size=5).run_once())
    assert most == at_once
    await drain(processor(ticking))
    assert len(await effects(ticking)) == 30


@pytest.mark.parametrize("begun", [False, True], ids=["together", "one by one"])
async def test_the_limit_holds_for_wary_workers_too(ticking: Database, begun: bool) -> None:
    await append(ticking, *(Tick(name=f"{number:02d}") for number in range(12)))
    await rows(ticking, "INSERT INTO outbox_types (type, max_batches) VALUES ('test.tick', 1)")
    if begun:
        await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now()")
    running, most = 0, 0

    async def count(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        nonlocal running, most
        await TickHandler()(uow, events)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1

    engines = [processor(ticking, count, batch_size=3) for _ in range(3)]
    for engine in engines:
        engine.be_wary()
    async with asyncio.timeout(60):
        while await rows(ticking, "SELECT 1 FROM outbox LIMIT 1"):
            await asyncio.gather(*(drain(engine) for engine in engines))
            assert await rows(ticking, "SELECT 1 FROM outbox WHERE attempts > 0 OR available_at > now()") == []
    assert most == 1
    assert len(await effects(ticking)) == 12


async def test_a_deferred_event_is_processed_when_it_is_due_and_no_event_waits_for_it(ticking: Database) -> None:
    async with UnitOfWork(ticking.write) as uow:
        uow.record(Tick(name="a"), available_at=now() + timedelta(hours=1))
        uow.record(Tick(name="a", number=1))
        await uow.commit()
    engine = processor(ticking)
    await drain(engine)
    assert await effects(ticking) == [("a", 1)]
    ready, due_in = await engine.look()
    assert not ready
    assert due_in == pytest.approx(3600, abs=60)

    await rows(ticking, DUE_NOW)
    await drain(engine)
    assert await effects(ticking) == [("a", 1), ("a", 0)]


async def test_twenty_thousand_rows_of_one_aggregate_hold_up_no_others_of_its_type_or_another(
    ticking: Database,
) -> None:
    ticks = []
    for number in range(20_000):
        ticks.append(Tick(name="hot", number=number))
        if number % 100 == 0:
            ticks.append(Tick(name=f"cold {number}", number=number))
    await append(ticking, *ticks, Spark(name="other"))
    both = Processor(
        lambda: UnitOfWork(ticking.write),
        [Subscription(Tick, TickHandler()), Subscription(Spark, TickHandler())],
        retry=LATER,
        batch_size=200,
    )
    for _ in range(40):
        await both.run_once()
    took = await effects(ticking)
    assert took.index(("other", 0)) < 200
    hot = [number for name, number in took if name == "hot"]
    assert hot == list(range(len(hot)))
    # From further on than the head of the queue has reached.
    assert max(number for name, number in took if name.startswith("cold")) > len(hot) + 1000
