"""Partitions are created while the log is in use: claims and writers never queue behind the job, which tries again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.cli.outbox.partitions import add_month, wanted_months
from services.database import Database
from services.outbox.retention import service as retention
from services.outbox.retention.repository import (
    DEFAULT_PARTITION,
    TooManyStrays,
    add_partitions,
    existing_partitions,
    months_from,
    partition_name,
)
from services.skew import database_time
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, drain, make_effects, processor
from tests.logs import capture_logs
from tests.migrations.test_partitions import id_at
from worker.jobs.retention import ensure_event_partitions

LONGEST = "1s"
"""The lock timeout of the claims and writers in these tests: none of them may wait that long."""


@asynccontextmanager
async def open_backup(database: Database) -> AsyncIterator[AsyncConnection]:
    """An open transaction that has read the log and its partitions, as `pg_dump` holds one for hours."""
    async with database.engine.connect() as connection:
        await connection.execute(text("LOCK TABLE events IN ACCESS SHARE MODE"))
        yield connection


async def drop_last_month(database: Database) -> str:
    """Drop the partition of the month in three months, which is empty; return its name."""
    async with database.engine.begin() as connection:
        month = months_from((await database_time(connection)).date(), 3)[-1]
        await connection.execute(text(f"DROP TABLE {partition_name(*month)}"))
    return partition_name(*month)


async def names(database: Database) -> set[str]:
    async with database.engine.connect() as connection:
        return await existing_partitions(connection)


async def use_the_log(database: Database, until: asyncio.Task[Any]) -> int:
    """Write and claim events until the task is done; return how many. Raises if one of them waits for a lock."""
    engine = processor(database, TickHandler())
    number = 0
    while not until.done():
        async with UnitOfWork(database.write) as uow:
            await (await uow.session.connection()).execute(text(f"SET LOCAL lock_timeout = '{LONGEST}'"))
            uow.record(Tick(name="a", number=number))
            # A reader of the whole log, as the claim is when the planner does not prune it.
            await (await uow.session.connection()).execute(text("SELECT FROM events LIMIT 1"))
            await uow.commit()
        async with asyncio.timeout(5):
            assert sum(outcome.processed for outcome in await drain(engine)) == 1
        number += 1
    return number


async def test_claims_and_writers_continue_during_a_backup_and_the_month_is_created_after_it(
    database: Database,
) -> None:
    await make_effects(database)
    wanted = await drop_last_month(database)
    async with open_backup(database) as backup:
        creating = asyncio.create_task(ensure_event_partitions({"worker": SimpleNamespace(database=database)}))
        using = asyncio.create_task(use_the_log(database, creating))
        await asyncio.wait({creating, using}, timeout=2)
        assert not creating.done()
        assert not using.done(), using.exception()
        assert wanted not in await names(database)
        await backup.rollback()
        await asyncio.wait_for(creating, 20)
        assert await asyncio.wait_for(using, 20) > 1
    assert wanted in await names(database)


async def test_a_log_that_stays_in_use_is_an_error_only_for_months_that_begin_soon(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ATTEMPTS", 2)
    ctx = {"worker": SimpleNamespace(database=database)}
    wanted = await drop_last_month(database)
    async with open_backup(database):
        with capture_logs() as logged:
            await ensure_event_partitions(ctx)
        assert [line["partition"] for line in logged if line["level"] == "warning"] == [wanted]
        monkeypatch.setattr("worker.jobs.retention._SOON", timedelta(days=400))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await ensure_event_partitions(ctx)
    await ensure_event_partitions(ctx)
    assert wanted in await names(database)


async def test_too_many_strays_are_left_to_an_operator(database: Database) -> None:
    wanted = await drop_last_month(database)
    year, month = int(wanted[7:11]), int(wanted[12:14])
    async with database.engine.begin() as connection:
        for second in range(3):
            await connection.execute(
                text("INSERT INTO events (id, type, version, aggregate, payload) VALUES (:id, 'a.b', 1, 'a/1', '{}')"),
                {"id": id_at(datetime(year, month, 2, 0, 0, second, tzinfo=UTC))},
            )
    async with database.engine.connect() as connection:
        with pytest.raises(TooManyStrays, match="waybill outbox partitions"):
            await add_partitions(connection, [(year, month)], 2)
    async with UnitOfWork(database.write) as uow:
        months = await wanted_months(uow)
        assert (year, month) in months
        assert await add_month(uow, (year, month)) == [wanted]
        await uow.commit()
    async with database.engine.connect() as connection:
        assert await connection.scalar(text(f"SELECT count(*) FROM {DEFAULT_PARTITION}")) == 0
        assert await connection.scalar(text(f"SELECT count(*) FROM {wanted}")) == 3
