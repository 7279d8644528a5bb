"""A worker whose server becomes read-only or falls silent: its loops, listener and heartbeat recover by themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest
from psycopg import sql
from sqlalchemy import make_url, text

from services.database import Database
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, append, effects, rows
from tests.conftest import Administrator
from tests.processes import Running, running
from tests.proxy import Proxy


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"outbox_time_limit": 1.0, "outbox_poll_interval": 0.2})


def ticking_worker(settings: Settings, folder: Path) -> AbstractContextManager[Running]:
    """The product's worker, with a handler of ticks."""
    return running(["-m", "tests.faults.stubborn_worker", "hang"], settings, folder / "worker.log")


async def until(met: Callable[[], Awaitable[bool]], what: str, worker: Running, seconds: float = 60.0) -> None:
    for _ in range(int(10 * seconds)):
        if await met():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds:g} s: {worker.said()}")


async def beat(database: Database) -> datetime | None:
    """When the worker last reported."""
    return next(iter(await rows(database, "SELECT max(beat_at) FROM workers")), None)


async def assert_works(database: Database, worker: Running, effect: str) -> None:
    """It processes what was recorded meanwhile, and reports again; the process is the same."""

    async def took_effect() -> bool:
        return (effect, 0) in await effects(database)

    await until(took_effect, f"the effect of {effect}", worker)
    before = await beat(database)

    async def reports() -> bool:
        return await beat(database) != before

    await until(reports, "a heartbeat", worker)
    assert worker.lives, worker.said()
    assert await rows(database, "SELECT count(*) FROM dead_letters") == [0]


async def append_although_read_only(database: Database, tick: Tick) -> None:
    async with UnitOfWork(database.write) as uow:
        await (await uow.session.connection()).execute(text("SET TRANSACTION READ WRITE"))
        uow.record(tick)
        await uow.commit()


async def test_a_worker_leaves_a_server_that_refuses_writes_for_one_that_takes_them(
    ticking: Database, administrator: Administrator, settings: Settings, tmp_path: Path
) -> None:
    name = sql.Identifier(make_url(settings.database_url).database or "")
    with ticking_worker(settings, tmp_path) as worker:
        await append(ticking, Tick(name="a"))
        await assert_works(ticking, worker, "a")

        # As after a failover: the connections break, and the new ones find a standby.
        administrator.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        await rows(
            ticking,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'waybill-worker%'"
            " AND datname = current_database()",
        )
        await append_although_read_only(ticking, Tick(name="b"))

        async def refused() -> bool:
            return "read-only transaction" in worker.said()

        await until(refused, "a refusal", worker)
        assert ("b", 0) not in await effects(ticking)

        # Connections that were opened meanwhile stay read-only, until the worker gives them up.
        administrator.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
        await assert_works(ticking, worker, "b")


async def test_a_worker_gives_up_a_server_that_falls_silent_and_continues_when_one_answers(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    async with Proxy(settings.database_url) as proxy:
        distant = settings.model_copy(update={"database_url": proxy.url})
        with ticking_worker(distant, tmp_path) as worker:
            await append(ticking, Tick(name="a"))
            await assert_works(ticking, worker, "a")

            proxy.silent = True
            await append(ticking, Tick(name="b"))

            async def notices() -> bool:
                return "outbox batch rolled back" in worker.said() and "no heartbeat" in worker.said()

            await until(notices, "its statements to time out", worker)
            assert ("b", 0) not in await effects(ticking)
            proxy.silent = False
            await assert_works(ticking, worker, "b")
