"""Eight writers and two readers step by step in a random order, which the seed replays."""

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from services.database import Database
from services.outbox.log import service as log
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_readers import Noted, lock, make_consumer, take_transaction_id

WRITERS = 8
STEPS = 700
AGGREGATES = ("a", "b", "c", "d", "e")
CONSUMERS = ("often", "seldom")


@dataclass
class Written:
    """When an event was written and when it was committed, in steps of the run."""

    name: str
    number: int
    at: int
    committed: int | None = None


@dataclass
class World:
    """What the writers did, and what the readers received."""

    step: int = 0
    holders: dict[str, "Writer"] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AGGREGATES, 0))
    written: dict[tuple[str, int], Written] = field(default_factory=dict)
    delivered: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))


class Writer:
    """One transaction after another: id, lock, event, perhaps more of them, commit or not; or in another order."""

    def __init__(self, database: Database, world: World, chance: random.Random) -> None:
        self._uow = UnitOfWork(database.write)
        self._world = world
        self._chance = chance
        self._mine: dict[str, list[Written]] = {}

    async def enter(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self._uow)

    async def step(self) -> None:
        """Take one of the steps that need not wait for another writer."""
        free = [name for name in AGGREGATES if name not in self._world.holders]
        steps: list[tuple[Callable[[], Awaitable[None]], int]] = [(self._take_id, 1)]
        if free and len(self._mine) < 2:
            steps.append((lambda: self._lock(self._chance.choice(free)), 3))
        if self._mine:
            steps += [(self._write, 4), (self._commit, 2), (self._roll_back, 1)]
        actions, weights = zip(*steps, strict=True)
        await self._chance.choices(actions, weights)[0]()

    async def _take_id(self) -> None:
        await take_transaction_id(self._uow)

    async def _lock(self, name: str) -> None:
        await lock(self._uow, name)
        self._world.holders[name] = self
        self._mine[name] = []

    async def _write(self) -> None:
        name = self._chance.choice(list(self._mine))
        number = self._world.versions[name] + len(self._mine[name]) + 1
        self._mine[name].append(Written(name, number, self._world.step))
        self._uow.record(Noted(name=name, number=number))
        await self._uow.check()

    async def _commit(self) -> None:
        await self._uow.commit()
        for name, events in self._mine.items():
            self._world.versions[name] += len(events)
            for event in events:
                event.committed = self._world.step
                self._world.written[event.name, event.number] = event
        self._end()

    async def _roll_back(self) -> None:
        await self._uow.rollback()
        self._end()

    def _end(self) -> None:
        for name in self._mine:
            del self._world.holders[name]
        self._mine.clear()


async def read(database: Database, world: World, consumer: str, limit: int, *, dies: bool) -> int:
    """One read; a reader that dies has its events but does not commit. Returns how many events took effect."""
    async with UnitOfWork(database.write) as uow:
        batch = await log.read(uow, consumer, limit)
        await log.advance(uow, batch)
        if dies:
            return 0
        await uow.commit()
    world.delivered[consumer] += [(event.payload["name"], event.payload["number"]) for event in batch.events]
    return len(batch.events) + batch.more


@pytest.mark.parametrize("seed", range(12))
async def test_every_committed_event_comes_once_in_the_order_of_commits(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    world = World()
    for consumer in CONSUMERS:
        await make_consumer(database, consumer)
    async with AsyncExitStack() as stack:
        writers = [Writer(database, world, chance) for _ in range(WRITERS)]
        for writer in writers:
            await writer.enter(stack)
        for world.step in range(STEPS):
            await chance.choice(writers).step()
            for consumer, often in zip(CONSUMERS, (0.3, 0.03), strict=True):
                if chance.random() < often:
                    await read(database, world, consumer, chance.choice((1, 3, 100)), dies=chance.random() < 0.2)
    for consumer in CONSUMERS:
        while await read(database, world, consumer, 10, dies=False):
            pass

    assert len(world.written) > 50
    for consumer in CONSUMERS:
        got = world.delivered[consumer]
        assert len(got) == len(set(got)), "an event came twice"
        assert set(got) == set(world.written), "an event was skipped, or was never committed"
        for name in AGGREGATES:
            numbers = [number for of, number in got if of == name]
            assert all(earlier + 1 == later for earlier, later in pairwise(numbers)), f"{name} is out of order"
        events = [world.written[key] for key in got]
        latest_start = -1
        for event in events:
            # No earlier event was written after this one had been committed.
            assert event.committed is not None
            assert latest_start <= event.committed, f"{event} came after what followed it"
            latest_start = max(latest_start, event.at)
