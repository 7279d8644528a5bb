"""An event that arrives while the one it waits for is processed, put off, buried or replayed is never stranded.

Two workers take turns at each await: one settles the first event of an aggregate, the other finds the second. The test
runs all schedules in which they interrupt each other twice.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.sql import sqlstate
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import (
    LATER,
    Tick,
    TickHandler,
    append,
    damage,
    drain,
    effects,
    processor,
    replay_letter,
    rows,
)
from tests.faults.stepping_worker import Deed, SteppingUnitOfWork, Steps

AWAITS = 9
"""The most awaits of a worker that processes one event."""
BLOCKED = 0.05
"""Seconds after which a worker that has not reached its next await is taken to wait for the other's lock."""

DEAD = RetryPolicy(max_attempts=1, base=1, cap=1)


class Turns(Steps):
    """Stops before each await until it is given a turn."""

    def __init__(self) -> None:
        super().__init__(Deed.nothing, 0, "", Path())
        self._turns = asyncio.Semaphore(0)
        self._waits = asyncio.Event()

    async def step(self, name: str) -> None:
        if name.startswith("before"):
            self._waits.set()
            await self._turns.acquire()

    async def give(self, turns: int, task: "asyncio.Task[None]") -> None:
        for _ in range(turns):
            if task.done():
                return
            self._waits.clear()
            self._turns.release()
            waiting = asyncio.create_task(self._waits.wait())
            await asyncio.wait([waiting, task], timeout=BLOCKED, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()


Side = Callable[[Database, Turns], Awaitable[None]]


async def work(database: Database, turns: Turns, retry: RetryPolicy, fails: bool) -> None:
    engine = Processor[UnitOfWork](
        lambda: SteppingUnitOfWork(database.write, turns),
        [Subscription(Tick, TickHandler(lambda claimed: fails and claimed.event.number == 0))],
        retry=retry,
        batch_size=10,
    )
    try:
        await engine.run_once()
    except DBAPIError as error:
        # A deadlock victim has done nothing and is retried.
        assert sqlstate(error) == "40P01", error  # noqa: PT017


async def process(database: Database, turns: Turns) -> None:
    await work(database, turns, LATER, fails=False)


async def put_off(database: Database, turns: Turns) -> None:
    await work(database, turns, LATER, fails=True)


async def bury(database: Database, turns: Turns) -> None:
    await work(database, turns, DEAD, fails=True)


async def replay(database: Database, turns: Turns) -> None:
    """Replay, as an operator does; the first event is dead."""
    async with SteppingUnitOfWork(database.write, turns) as uow:
        await turns.step("before replay")
        await replay_letter(uow, await first(database))
        await uow.commit()


async def meet(database: Database, turns: Turns) -> None:
    await turns.step("before arrival")
    await append(database, Tick(name="a", number=1))
    await work(database, turns, LATER, fails=False)


async def first(database: Database) -> int:
    (position,) = await rows(database, "SELECT min(position) FROM dead_letters")
    return int(position or 0)


async def prepare(database: Database, settles: Side) -> None:
    """The first event waits and is due, or is dead."""
    await damage(database, "TRUNCATE outbox, events, dead_letters, effects")
    await append(database, Tick(name="a"))
    if settles is replay:
        await drain(processor(database, TickHandler(lambda _: True), retry=DEAD))
    else:
        await rows(database, "UPDATE outbox SET waits = 'retry', available_at = now()")


async def take_turns(database: Database, sides: tuple[Side, Side], turns: tuple[int, int]) -> None:
    gates = (Turns(), Turns())
    tasks = [asyncio.create_task(_run(side, database, gate)) for side, gate in zip(sides, gates, strict=True)]
    for which, some in ((0, turns[0]), (1, turns[1]), (0, 1000), (1, 1000)):
        # An event that is blocked by the other's lock is retried when the other has finished.
        await gates[which].give(min(some, 40), tasks[which])
    for gate, task in zip(gates, tasks, strict=True):
        await gate.give(40, task)
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)


async def _run(side: Side, database: Database, gate: Turns) -> None:
    await side(database, gate)


async def assert_nothing_is_stranded(database: Database, schedule: str) -> None:
    """Make events that were put off due, and replay dead ones, but do not touch the events behind them."""
    await drain(processor(database))
    if position := await first(database):
        async with UnitOfWork(database.write) as uow:
            assert await replay_letter(uow, position)
            await uow.commit()
    await rows(database, "UPDATE outbox SET available_at = now() WHERE waits = 'retry'")
    await drain(processor(database))
    assert await effects(database) == [("a", 0), ("a", 1)], schedule
    assert await rows(database, "SELECT waits FROM outbox") == [], schedule


@pytest.mark.parametrize("settles", [process, put_off, bury, replay])
async def test_an_event_that_meets_what_it_waits_for_is_never_stranded(ticking: Database, settles: Side) -> None:
    for swapped in (False, True):
        sides = (meet, settles) if swapped else (settles, meet)
        for one in range(AWAITS + 1):
            for other in range(1, AWAITS + 1):
                await prepare(ticking, settles)
                async with asyncio.timeout(30):
                    await take_turns(ticking, sides, (one, other))
                await assert_nothing_is_stranded(ticking, f"{sides[0].__name__} {one}, {sides[1].__name__} {other}")
