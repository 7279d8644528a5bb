"""A replayed dead letter releases the events behind it, including those that arrive while it is being replayed."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, append, drain, effects, processor, replay_letter, rows

AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)
DEAD = "SELECT position FROM dead_letters"
STRANDED = "SELECT position FROM outbox WHERE available_at = 'infinity'"
WHILE_IT_MAY_WAIT = 0.5
"""Seconds to allow for something that may, but need not, wait for the replay's commit."""


async def bury(database: Database, name: str = "a") -> int:
    """Make a dead letter, the aggregate's only event; return its position."""
    await append(database, Tick(name=name))
    await drain(processor(database, TickHandler(lambda _: True), retry=AT_ONCE_DEAD))
    (position,) = await rows(database, DEAD)
    return int(position)


async def arrive_and_be_looked_at(database: Database, *ticks: Tick) -> None:
    """Events are committed, and a worker looks at them."""
    await append(database, *ticks)
    await tolerant(drain(processor(database)))


async def tolerant(work: Coroutine[Any, Any, object]) -> None:
    """A deadlock victim has done nothing and is retried, as the poller and the API do."""
    try:
        await work
    except DBAPIError as error:
        assert getattr(error.orig, "sqlstate", None) == "40P01", error  # noqa: PT017


async def replay(database: Database, position: int) -> None:
    for _ in range(5):
        try:
            async with UnitOfWork(database.write) as uow:
                await replay_letter(uow, position)
                await uow.commit()
        except DBAPIError as error:
            assert getattr(error.orig, "sqlstate", None) == "40P01", error  # noqa: PT017
        else:
            return
    raise AssertionError("always the victim")


async def assert_nothing_is_left(database: Database, *expected: tuple[str, int]) -> None:
    await drain(processor(database))
    assert await rows(database, STRANDED) == []
    assert await effects(database) == list(expected)
    assert await rows(database, "SELECT position FROM outbox") == []
    assert await rows(database, DEAD) == []


@pytest.mark.parametrize("later", [1, 3])
async def test_an_event_that_a_worker_looks_at_while_the_dead_letter_is_replayed_is_not_stranded(
    ticking: Database, later: int
) -> None:
    position = await bury(ticking)
    ticks = [Tick(name="a", number=number) for number in range(1, later + 1)]
    async with asyncio.timeout(30), UnitOfWork(ticking.write) as uow:
        await replay_letter(uow, position)
        looking = asyncio.create_task(arrive_and_be_looked_at(ticking, *ticks))
        await asyncio.wait([looking], timeout=WHILE_IT_MAY_WAIT)
        await uow.commit()
        await looking

    await assert_nothing_is_left(ticking, *(("a", number) for number in range(later + 1)))


async def test_a_replay_that_is_rolled_back_leaves_the_later_event_behind_the_dead_letter(ticking: Database) -> None:
    position = await bury(ticking)
    async with asyncio.timeout(30), UnitOfWork(ticking.write) as uow:
        await replay_letter(uow, position)
        looking = asyncio.create_task(arrive_and_be_looked_at(ticking, Tick(name="a", number=1)))
        await asyncio.wait([looking], timeout=WHILE_IT_MAY_WAIT)
        await uow.rollback()
        await looking

    await drain(processor(ticking))
    assert await effects(ticking) == []
    assert await rows(ticking, DEAD) == [position]

    await replay(ticking, position)
    await assert_nothing_is_left(ticking, ("a", 0), ("a", 1))


@pytest.mark.parametrize("committed_first", [True, False], ids=["replay first", "worker first"])
async def test_a_dead_letter_replayed_between_a_workers_claim_and_its_commit_strands_nothing(
    ticking: Database, committed_first: bool
) -> None:
    """The worker has claimed the later event as blocked; what it does about that comes after the replay has begun."""
    position = await bury(ticking)
    await append(ticking, Tick(name="other"), Tick(name="a", number=1))
    claimed, go_on = asyncio.Event(), asyncio.Event()

    async def wait(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await TickHandler()(uow, events)
        claimed.set()
        await go_on.wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(tolerant(processor(ticking, wait).run_once()))
        await claimed.wait()
        replaying = group.create_task(replay(ticking, position))
        if committed_first:
            # It cannot if the worker's locks are in the way.
            await asyncio.wait([replaying], timeout=WHILE_IT_MAY_WAIT)
        else:
            await asyncio.sleep(0)
        go_on.set()

    await drain(processor(ticking))
    took_effect = await effects(ticking)
    assert [one for one in took_effect if one[0] == "a"] == [("a", 0), ("a", 1)]
    assert await rows(ticking, STRANDED) == []
    assert await rows(ticking, "SELECT position FROM outbox") == []


async def test_replays_events_and_workers_at_once_strand_nothing_and_keep_the_order(ticking: Database) -> None:
    names, length = [f"n{number}" for number in range(12)], 6
    await append(ticking, *(Tick(name=name) for name in names))
    await drain(processor(ticking, TickHandler(lambda _: True), retry=AT_ONCE_DEAD))
    positions = await rows(ticking, f"{DEAD} ORDER BY position")
    assert len(positions) == len(names)
    finished = asyncio.Event()

    async def write() -> None:
        for number in range(1, length):
            for name in names:
                await append(ticking, Tick(name=name, number=number))

    async def work() -> None:
        while not finished.is_set():
            await tolerant(drain(processor(ticking, batch_size=7)))
            await asyncio.sleep(0.002)

    async def rise() -> None:
        for position in positions:
            await replay(ticking, position)
            await asyncio.sleep(0.005)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(work())
        await asyncio.gather(group.create_task(write()), group.create_task(rise()))
        finished.set()

    await drain(processor(ticking))
    assert await rows(ticking, STRANDED) == []
    took_effect = await effects(ticking)
    for name in names:
        assert [number for other, number in took_effect if other == name] == list(range(length)), name
