"""The canary notices writes that are answered but lost, reports which step failed, and makes the process unready."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import psycopg
import pytest
from sqlalchemy import text

from services.api import canary as module
from services.api.canary import Canary
from services.api.state import ApiState
from services.database import Database, make_engine, make_session_factory
from services.settings import Settings
from tests.api.test_metrics import samples_of
from tests.api.test_readiness import SESSIONS, readiness, running, until, until_it_says
from tests.conftest import Administrator

OFTEN = 0.05
MINE = "SELECT number FROM canaries"
FORBIDDEN = """
    CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$;
    CREATE {kind} forbid {when} ON canaries {deferred} FOR EACH ROW EXECUTE FUNCTION forbid()
"""
ALLOWED = "DROP FUNCTION forbid CASCADE"


@pytest.fixture
async def often(settings: Settings) -> AsyncIterator[tuple[httpx2.AsyncClient, ApiState]]:
    """The application, with a canary that writes continuously."""
    async with running(settings.model_copy(update={"canary_interval": OFTEN})) as started:
        yield started


async def failed_for(client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture, why: str) -> None:
    assert await until_it_says(client, canary="failed") == 503
    status, said, retry_after = await readiness(client)
    assert (status, said["ready"], said["database"], retry_after) == (503, False, "ok", "1")
    # The attempts after one that hangs may fail at another step, as long as the one that hangs has locked the row.
    line = next(record for record in caplog.records if record.name == module.__name__)
    assert line.levelno == logging.ERROR
    assert f"could not {why}" in line.getMessage()


async def number(database: Database) -> int:
    async with database.engine.connect() as connection:
        return int((await connection.execute(text(MINE))).scalar_one())


async def test_it_writes_again_and_again(often: tuple[httpx2.AsyncClient, ApiState], database: Database) -> None:
    client, state = often
    first = await number(database)

    async def has_gone_on() -> bool:
        return await number(database) >= first + 3

    await until(has_gone_on)
    assert (await readiness(client))[1]["canary"] == "ok"
    assert state.canary.failures == 0


async def test_a_committed_write_that_is_not_there_is_noticed(
    often: tuple[httpx2.AsyncClient, ApiState], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = often
    with psycopg.connect(database_url, autocommit=True) as other:
        lost = FORBIDDEN.format(body="RETURN NULL", kind="TRIGGER", when="BEFORE INSERT", deferred="")
        other.execute(lost.encode())
        await failed_for(client, caplog, "find its row over another connection, after the commit")
        other.execute(ALLOWED)
    assert await until_it_says(client, canary="ok") == 200


async def test_a_refused_write_is_reported(
    often: tuple[httpx2.AsyncClient, ApiState], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = often
    caplog.set_level(logging.INFO, module.__name__)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("ALTER TABLE canaries RENAME TO away")
        await failed_for(client, caplog, "write its row")
        other.execute("ALTER TABLE away RENAME TO canaries")
    assert await until_it_says(client, canary="ok") == 200
    assert "can be written and read back again" in caplog.text


async def test_a_failed_commit_is_reported(
    often: tuple[httpx2.AsyncClient, ApiState], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = often
    with psycopg.connect(database_url, autocommit=True) as other:
        failing = FORBIDDEN.format(
            body="RAISE EXCEPTION 'no'",
            kind="CONSTRAINT TRIGGER",
            when="AFTER INSERT OR UPDATE",
            deferred="DEFERRABLE INITIALLY DEFERRED",
        )
        other.execute(failing.encode())
        await failed_for(client, caplog, "commit")
        other.execute(ALLOWED)
    assert await until_it_says(client, canary="ok") == 200


@pytest.mark.parametrize("step", ["write its row", "commit"])
async def test_an_attempt_that_hangs_is_reported_in_time_and_the_next_ones_go_on(
    often: tuple[httpx2.AsyncClient, ApiState],
    database: Database,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    client, _ = often
    monkeypatch.setattr(module, "_LIMIT", 1.0)
    with psycopg.connect(database_url) as other:
        if step == "commit":
            waiting = FORBIDDEN.format(
                body="PERFORM pg_advisory_xact_lock(7); RETURN NULL",
                kind="CONSTRAINT TRIGGER",
                when="AFTER INSERT OR UPDATE",
                deferred="DEFERRABLE INITIALLY DEFERRED",
            )
            other.execute(waiting.encode())
            other.commit()
            other.execute("SELECT pg_advisory_lock(7)")
        else:
            other.execute("LOCK TABLE canaries IN EXCLUSIVE MODE")
        await failed_for(client, caplog, step)
        other.rollback()
        other.execute("SELECT pg_advisory_unlock_all()")
        other.commit()
        assert await until_it_says(client, canary="ok") == 200
        monkeypatch.undo()
        before = await number(database)

        async def has_gone_on() -> bool:
            return await number(database) > before

        await until(has_gone_on)


async def test_a_connection_that_reads_nothing_back_is_reported(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = make_engine(settings, "elsewhere", settings.async_url().set(database="there_is_none"), pool_size=1)
    async with Canary(database.write, make_session_factory(elsewhere), OFTEN) as canary:
        await until_state(canary, "failed")
    await elsewhere.dispose()
    assert "could not read its row back" in caplog.text


async def until_state(canary: Canary, state: str) -> None:
    async def is_so() -> bool:
        return canary.state == state

    await until(is_so)


@asynccontextmanager
async def all_connections_held(state: ApiState) -> AsyncIterator[None]:
    async with state.database.engine.connect():
        yield


async def test_without_a_free_connection_an_attempt_is_postponed_and_nothing_fails(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"database_pool_size": 1, "database_max_overflow": 0, "database_pool_timeout": 0.2}
    async with running(settings.model_copy(update={**small, "canary_interval": OFTEN})) as (client, state):
        async with all_connections_held(state):

            async def has_complained() -> bool:
                return any(record.name == module.__name__ for record in caplog.records)

            await until(has_complained)
            assert (state.canary.state, state.canary.failures) == ("ok", 0)
            assert (await readiness(client))[0] == 200
        [line] = [record for record in caplog.records if record.name == module.__name__]
        assert line.levelno == logging.WARNING
        assert "could not take a connection from the pool" in line.getMessage()


async def test_connections_that_the_server_ended_are_not_a_failure(
    often: tuple[httpx2.AsyncClient, ApiState], database: Database, administrator: Administrator, settings: Settings
) -> None:
    _, state = often
    name = settings.async_url().database
    for _ in range(3):
        administrator.execute(SESSIONS, (name,))
        before = state.canary.age

        async def has_succeeded(before: float = before) -> bool:
            return state.canary.age < before or state.canary.failures > 0

        await until(has_succeeded)
    assert state.canary.failures == 0


async def test_a_canary_whose_task_ends_unexpectedly_says_so_and_the_process_is_unready(
    often: tuple[httpx2.AsyncClient, ApiState], caplog: pytest.LogCaptureFixture
) -> None:
    client, state = often
    assert state.canary._running is not None
    state.canary._running.task.cancel()
    assert await until_it_says(client, canary="failed") == 503
    [line] = [record for record in caplog.records if record.name == module.__name__]
    assert line.levelno == logging.CRITICAL
    assert "its task ended" in line.getMessage()


async def test_an_orderly_shutdown_is_not_reported(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with Canary(database.write, database.write, OFTEN):
        await asyncio.sleep(0.2)
    assert [record for record in caplog.records if record.name == module.__name__] == []


async def test_rows_of_stopped_processes_are_deleted_after_a_day(settings: Settings, database: Database) -> None:
    left = "INSERT INTO canaries VALUES (gen_random_uuid(), 'host', 1, 1, now() - CAST(:age AS interval))"
    async with database.engine.begin() as connection:
        for age in ("23 hours", "25 hours", "300 days"):
            await connection.execute(text(left.replace(":age", f"'{age}'")))
    async with Canary(database.write, database.write, 3600) as canary:
        await until_state(canary, "ok")
    async with database.engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM canaries"))).scalar_one() == 2


async def test_metrics_show_its_age_and_its_failures(
    often: tuple[httpx2.AsyncClient, ApiState], database_url: str
) -> None:
    client, _ = often
    before = samples_of((await client.get("/metrics")).text)
    assert before["waybill_canary_failures_total", ()] == 0
    assert before["waybill_canary_last_success_timestamp_seconds", ()] > 0
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("ALTER TABLE canaries RENAME TO away")
        await until_it_says(client, canary="failed")
        after = samples_of((await client.get("/metrics")).text)
        other.execute("ALTER TABLE away RENAME TO canaries")
    assert after["waybill_canary_failures_total", ()] >= 1
