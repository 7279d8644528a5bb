"""Engines, sessions, the connection budget, and the wiring of events."""

import asyncio
import inspect
import logging
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool
from sqlmodel import select

import services.models  # noqa: F401
from services.api.server import make_room
from services.api.shares import SharingPool, Use, use
from services.app import create_app
from services.budget import check_pool_budget
from services.database import Database, make_engine, open_database
from services.outbox.events import Event
from services.settings import Settings
from services.subscriptions import SUBSCRIPTIONS
from tests.roles import superuser_of
from worker.context import open_polling, open_worker

OF_PROCESS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE :name"
)


async def connections(database: Database, name: str) -> int:
    async with database.engine.connect() as connection:
        return int((await connection.execute(OF_PROCESS, {"name": name})).scalar_one())


async def assert_gone(database: Database, name: str) -> None:
    """A connection that was closed is listed until its server process has ended."""
    for _ in range(100):
        if await connections(database, name) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{await connections(database, name)} connections are left")


async def test_the_applications_connections_are_gone_when_its_lifespan_ends(
    settings: Settings, database: Database
) -> None:
    app: FastAPI = create_app(settings)
    async with app.router.lifespan_context(app):
        async with app.state.waybill.database.write() as session:
            await session.exec(select(1))
            assert await connections(database, "waybill-api") >= 1, "the canary may have one beside it"
        assert await connections(database, "waybill-api") >= 1, "the pool keeps it"
    await assert_gone(database, "waybill-api%")


async def test_the_workers_connections_are_gone_when_it_ends(settings: Settings, database: Database) -> None:
    async with open_worker(settings) as worker, worker.database.write() as session:
        await session.exec(select(1))
        assert await connections(database, "waybill-worker%") >= 1
    await assert_gone(database, "waybill-worker%")


async def test_sessions_use_utc_and_limit_idle_time_in_a_transaction(settings: Settings, database: Database) -> None:
    async with database.engine.connect() as connection:
        assert (await connection.execute(text("SHOW timezone"))).scalar_one() == "UTC"
        shown = (await connection.execute(text("SHOW idle_in_transaction_session_timeout"))).scalar_one()
    assert shown == "40s"
    assert settings.database_idle_in_transaction_timeout == 40


@pytest.fixture
async def strict(settings: Settings) -> Settings:
    """A database in which transactions are stricter than ours unless they say otherwise."""
    with psycopg.connect(superuser_of(settings)) as connection:
        strict = sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'")
        connection.execute(strict.format(sql.Identifier(connection.info.dbname)))
    return settings


async def test_every_engine_asks_for_read_committed_whatever_the_default_of_the_database(strict: Settings) -> None:
    level = text("SHOW transaction_isolation")
    async with open_database(strict, "own") as own, own.write() as session:
        assert (await (await session.connection()).execute(level)).scalar_one() == "read committed"
    async with open_polling(strict, 1.0) as polling, polling() as session:
        assert (await (await session.connection()).execute(level)).scalar_one() == "read committed"


async def test_without_a_replica_reads_go_to_the_primary(settings: Settings) -> None:
    async with open_database(settings, "test-one") as one:
        assert one.read.kw["bind"] is one.write.kw["bind"]


async def test_a_replica_is_read_only_once_it_is_found_fit_and_its_connections_end_too(
    settings: Settings, database: Database
) -> None:
    # Another address of the primary: the pool does not know, but a look would.
    replicated = settings.model_copy(update={"database_replica_url": settings.database_url})
    async with open_database(replicated, "two") as two:
        assert two.replicated is not None
        assert two.read is two.write
        async with two.replicated() as session:
            await session.exec(select(1))
        assert await connections(database, "waybill-two-read") == 1
        assert await two.look_and_read() is two.write
        assert await connections(database, "waybill-two-%") == 3
    await assert_gone(database, "waybill-two%")


async def test_a_write_takes_one_place_even_if_the_pool_looks_twice_for_its_connection(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    outpaced = iter([True])

    def grow(pool: SharingPool) -> bool:
        # As if someone else had made the last connection meanwhile: the pool then looks again from the start.
        return not next(outpaced, False) and QueuePool._inc_overflow(pool)

    monkeypatch.setattr(SharingPool, "_inc_overflow", grow)
    small = settings.model_copy(
        update={"database_pool_size": 1, "database_max_overflow": 0, "database_pool_timeout": 0.5}
    )
    token = use.set(Use.write)
    try:
        async with open_database(small, "test", pool_class=SharingPool) as opened:
            # There is one place, and each of these gives it back.
            for _ in range(3):
                async with opened.write() as session:
                    assert (await session.exec(select(1))).one() == 1
    finally:
        use.reset(token)
    assert next(outpaced, None) is None


async def test_slow_writes_leave_connections_for_reads_and_both_leave_some_for_group_commit(settings: Settings) -> None:
    few = settings.model_copy(
        update={"database_pool_size": 6, "database_max_overflow": 2, "database_pool_timeout": 0.2}
    )
    async with open_database(few, "test", pool_class=SharingPool) as opened, AsyncExitStack() as stack:

        async def take(wanted: Use) -> None:
            token = use.set(wanted)
            try:
                session = await stack.enter_async_context(opened.write())
                await session.exec(select(1))
            finally:
                use.reset(token)

        for _ in range(4):
            await take(Use.write)
        with pytest.raises(PoolTimeout, match=r"no connection for a write within 0\.2 s: 4 are in use"):
            await take(Use.write)
        for _ in range(2):
            await take(Use.read)
        with pytest.raises(PoolTimeout, match=r"no connection for a read within 0\.2 s: 6 are in use"):
            await take(Use.read)
        for _ in range(2):
            await take(Use.commit)


async def test_a_pool_budget_that_fits_is_silent(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(settings, "budget")
    try:
        with caplog.at_level(logging.WARNING):
            budget = await check_pool_budget(engine, settings)
    finally:
        await engine.dispose()
    assert budget.fits
    assert caplog.records == []


async def test_a_pool_budget_that_does_not_fit_logs_a_warning_with_the_numbers(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    wide = settings.model_copy(
        update={"database_pool_size": 40, "database_max_overflow": 7, "api_processes": 9, "worker_processes": 4}
        | {"outbox_concurrency": 3}
    )
    async with database.engine.connect() as connection:
        granted = (
            await connection.execute(
                text(
                    "SELECT current_setting('max_connections')::int"
                    " - current_setting('superuser_reserved_connections')::int"
                    " - coalesce(current_setting('reserved_connections', true)::int, 0)"
                )
            )
        ).scalar_one()
    with caplog.at_level(logging.WARNING):
        budget = await check_pool_budget(database.engine, wide)
    assert (budget.per_process, budget.processes, budget.wanted, budget.available) == (47, 13, 645, granted)
    assert not budget.fits
    [record] = caplog.records
    for number in (
        "13 processes",
        "47 connections",
        "34 for poll loops, probes",
        "= 645",
        f"allows {granted}",
    ):
        assert number in record.getMessage()


def _events(base: type[Event] = Event) -> Iterator[type[Event]]:
    for event in base.__subclasses__():
        if event.__module__.startswith("services."):
            yield from _events(event)
            if not inspect.isabstract(event) and hasattr(event, "type"):
                yield event


def test_every_queued_event_has_a_handler_and_every_handler_a_queued_event() -> None:
    events = list(_events())
    assert len(events) >= 8
    assert len({event.type for event in events}) == len(events), "two events have one type"
    queued = {event.type for event in events if event.queued}
    subscribed = [subscription.event.type for subscription in SUBSCRIPTIONS]
    assert sorted(subscribed) == sorted(queued)


async def test_http_leaves_room_for_the_connections_to_each_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    sizes = {"database_pool_size": 10, "database_max_overflow": 5, "http_max_connections": 0}
    one = settings.model_copy(update=sizes)
    replicated = one.model_copy(update={"database_replica_url": "postgresql://replica/waybill"})
    reporting = replicated.model_copy(
        update={"analytics_url": "postgresql://analytics/waybill", "analytics_pool_size": 7}
    )
    first, second, third = make_room(one), make_room(replicated), make_room(reporting)
    assert first - second == 15 + 2, "a pool like the first, and two connections that compare the servers"
    assert second - third == 7
