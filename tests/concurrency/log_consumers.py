"""Runs consumers of the log as workers do, and waits for what becomes of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from services.database import Database
from services.outbox.consumers import Consumer
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_readers import FEED, Noted
from tests.concurrency.ticks import rows
from worker.follower import Follower

LEASE = 60.0


def follower(database: Database, *consumers: Consumer[UnitOfWork], lease: float = LEASE) -> Follower:
    return Follower(lambda: UnitOfWork(database.write), consumers, uuid4(), lease=lease)


@asynccontextmanager
async def following(database: Database, *consumers: Consumer[UnitOfWork], lease: float = LEASE) -> AsyncIterator[None]:
    """Run the consumers, as one worker does."""
    one = follower(database, *consumers, lease=lease)
    one.start()
    try:
        yield
        for task in one.tasks:
            assert not task.done(), task.exception()
    finally:
        await one.stop(5)


async def what(database: Database) -> list[str]:
    return await rows(database, "SELECT what FROM told ORDER BY id")


async def until(database: Database, expected: list[str]) -> None:
    """Wait until exactly this was told."""
    for _ in range(200):
        if len(await what(database)) >= len(expected):
            break
        await asyncio.sleep(0.05)
    assert await what(database) == expected


async def lag(database: Database, name: str = FEED) -> Lag:
    async with UnitOfWork(database.write) as uow:
        return next(one for one in await log.lags(uow) if one.name == name)


async def until_state(database: Database, state: str, name: str = FEED) -> Lag:
    for _ in range(200):
        async with UnitOfWork(database.write) as uow:
            found = [one for one in await log.lags(uow) if one.name == name]
        if found and found[0].state == state:
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found} instead of {state}")


async def change(database: Database, do: Callable[[UnitOfWork], Any]) -> None:
    async with UnitOfWork(database.write) as uow:
        await do(uow)
        await uow.commit()


def numbers(first: int, last: int, name: str = "a") -> list[Noted]:
    return [Noted(name=name, number=number) for number in range(first, last)]


def named(first: int, last: int, name: str = "a") -> list[str]:
    return [f"{name} {number}" for number in range(first, last)]


async def until_caught_up(database: Database) -> None:
    for _ in range(200):
        if not (await lag(database)).events:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not catch up")
