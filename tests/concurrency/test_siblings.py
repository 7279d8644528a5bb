"""Processors of one process that share the queue while one aggregate fills its head."""

import asyncio
from collections.abc import Sequence

import pytest

from services.database import Database
from services.outbox.engine import window
from services.outbox.engine.service import Processor
from services.outbox.engine.window import Window
from services.outbox.events import Claimed
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, effects, rows

HOT = 200
OTHERS = 100
BATCH = 40


class GatedHandler(TickHandler):
    """Keeps its transaction open until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        self.entered.set()
        await self.gate.wait()


def processor(database: Database, handler: TickHandler, siblings: list[Window]) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler)],
        retry=LATER,
        batch_size=BATCH,
        siblings=siblings,
    )


@pytest.fixture
async def hot(ticking: Database) -> Database:
    """One aggregate fills the head of the queue."""
    await append(ticking, *(Tick(name="hot", number=number) for number in range(HOT)))
    await append(ticking, *(Tick(name=f"other-{number}") for number in range(OTHERS)))
    return ticking


async def test_events_that_would_wait_for_a_sibling_are_left_to_it(
    hot: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The random position further on: not in the middle of the same aggregate.
    monkeypatch.setattr(window, "_further", lambda _, floor: floor.last_taken - OTHERS + 1)
    # However slow the machine, the sibling does not count as slow.
    monkeypatch.setattr(window, "_LEFT_FOR", 60.0)
    siblings: list[Window] = []
    handler = GatedHandler()
    one, other = processor(hot, handler, siblings), processor(hot, TickHandler(), siblings)
    await one.run_once()
    await other.run_once()

    handler.entered.clear()
    handler.gate.clear()
    running = asyncio.create_task(one.run_once())
    await handler.entered.wait()
    outcome = await other.run_once()
    handler.gate.set()
    await running

    assert (outcome.processed, outcome.blocked) == (BATCH, 0)
    await drain(one)
    await drain(other)
    done = await effects(hot)
    assert [number for name, number in done if name == "hot"] == list(range(HOT))
    assert len(done) == HOT + OTHERS


async def test_several_processors_that_drain_at_once_process_everything_in_order(hot: Database) -> None:
    siblings: list[Window] = []
    engines = [processor(hot, TickHandler(), siblings) for _ in range(3)]
    while len(await effects(hot)) < HOT + OTHERS:
        await asyncio.gather(*(drain(engine) for engine in engines))
    done = await effects(hot)
    assert [number for name, number in done if name == "hot"] == list(range(HOT))
    assert len(set(done)) == len(done) == HOT + OTHERS


async def test_an_event_further_on_does_not_wait_because_its_turn_has_not_come(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is blocked by an event that the claims have not reached yet: nothing stands still."""
    monkeypatch.setattr(window, "_STANDSTILL", 0.0)
    await append(ticking, *(Tick(name="hot", number=number) for number in range(HOT)))
    await append(ticking, *(Tick(name=f"other-{n}", number=number) for number in (0, 1) for n in range(OTHERS)))
    monkeypatch.setattr(window, "_further", lambda _, floor: floor.last_taken - OTHERS + 1)
    engine = processor(ticking, TickHandler(), [])
    blocked = 0
    while len(await effects(ticking)) < HOT + 2 * OTHERS:
        outcome = await engine.run_once()
        blocked += outcome.blocked
        assert await rows(ticking, "SELECT aggregate FROM outbox WHERE available_at IS NOT NULL") == []
    assert blocked > 0
