"""A host's clock is compared with the database's: a wrong clock is reported, and its times reach no row."""

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services import skew
from services.database import Database
from services.fields import new_id
from services.outbox.control import service as control
from services.outbox.retention.repository import existing_partitions, months_from, partition_name
from services.settings import Settings
from services.skew import ClockSkewed, Skew, check_clock, database_time, follow_database, watched_clock
from services.unit_of_work import OpenUnitOfWork
from tests.clocks import mislead, shift_the_host, step_the_host
from tests.concurrency.ticks import Tick, rows
from tests.faults.test_heartbeat import heart
from worker.jobs import retention
from worker.poller import Progress

HOUR = 3600.0
TWO_YEARS = 2 * 365 * 24 * HOUR


async def look(database: Database, known: Skew) -> None:
    async with database.engine.connect() as connection:
        await known.look(connection)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    lines = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == skew.__name__]
    caplog.clear()
    return lines


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within half a minute")


@pytest.mark.parametrize("seconds", [-HOUR, -0.5, 0, 0.5, HOUR])
async def test_the_difference_of_the_clocks_is_measured(
    database: Database, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_the_host(monkeypatch, seconds)
    known = await check_clock(database.engine, 2 * HOUR)
    assert known.seconds == pytest.approx(seconds, abs=0.4)
    assert known.complaint is None


async def test_a_warning_is_logged_once_until_the_clock_is_right_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = Skew(300.0)
    shift_the_host(monkeypatch, 0)
    await look(database, known)
    assert said(caplog) == []

    step_the_host(monkeypatch, -90)
    for _ in range(3):
        await look(database, known)
    ((level, line),) = said(caplog)
    assert level == logging.WARNING
    assert re.search(r"this host's clock is (89|90)\.\d s behind the database's", line)
    assert "NTP" in line

    # Below the limit of the warning, but not right yet.
    for seconds in (0.9, 1.1, 0.9, 1.1):
        step_the_host(monkeypatch, seconds)
        await look(database, known)
    assert said(caplog) == []

    step_the_host(monkeypatch, 0)
    await look(database, known)
    assert [line for _, line in said(caplog)] == ["this host's clock agrees with the database's again"]
    step_the_host(monkeypatch, 90)
    await look(database, known)
    assert "s ahead of the database's" in said(caplog)[0][1]


async def test_a_slow_trip_to_the_database_is_not_taken_for_skew(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The database looks at its clock at once, and takes its time to answer.
    slow = "SELECT CAST(extract(epoch FROM statement_timestamp()) AS double precision) FROM pg_sleep(2.4)"
    monkeypatch.setattr(skew, "_DATABASE_TIME", text(slow))
    monkeypatch.setattr(skew, "_TRIPS", 1)
    shift_the_host(monkeypatch, 0)
    known = Skew(300.0)
    await look(database, known)
    assert known.seconds > skew.WORTH_A_WARNING
    assert said(caplog) == []


async def test_a_skew_above_the_limit_is_refused_at_start(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_the_host(monkeypatch, HOUR)
    with pytest.raises(ClockSkewed, match=r"3,[56]\d\d\.\d s ahead of the database's and WAYBILL_MAX_CLOCK_SKEW"):
        await check_clock(database.engine, 300.0)


async def test_a_step_of_the_clock_of_a_running_process_is_noticed_and_its_end_too(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(skew, "INTERVAL", 0.01)
    shift_the_host(monkeypatch, 0)
    async with watched_clock(database.engine, 300.0) as known:
        assert known.complaint is None
        step_the_host(monkeypatch, -HOUR)
        await until(lambda: known.complaint is not None)
        assert [level for level, _ in said(caplog)] == [logging.ERROR]
        step_the_host(monkeypatch, 0)
        await until(lambda: known.complaint is None)


@pytest.mark.parametrize("seconds", [-TWO_YEARS, TWO_YEARS])
async def test_events_of_a_host_whose_clock_is_wrong_are_where_retention_finds_them(
    database: Database, uow: OpenUnitOfWork, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_the_host(monkeypatch, seconds)
    await follow_database(database.engine)
    async with uow() as unit:
        unit.record(Tick(name="a"))
        await unit.commit()

    async with database.engine.connect() as connection:
        today = await database_time(connection)
    this_month = partition_name(today.year, today.month)
    assert await rows(database, "SELECT tableoid::regclass::text FROM events") == [this_month]
    await rows(database, "DELETE FROM outbox")
    assert await retention.forget_events(database.engine, today, None) == []
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    # Whatever a host takes for today, the database drops no month that has not ended.
    with pytest.raises(DBAPIError, match=f"{this_month} has not ended"):
        await retention.forget_events(database.engine, next_month, None)


@pytest.mark.parametrize("seconds", [-TWO_YEARS, TWO_YEARS])
async def test_months_of_the_log_are_created_and_dropped_by_the_clock_of_the_database(
    database: Database, settings: Settings, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO events (id, type, version, aggregate, payload, request_id)"
                " VALUES (:id, 'test.now', 1, 'now/1', '{}', 'r-1')"
            ),
            {"id": new_id()},
        )
    mislead(monkeypatch, seconds)
    worker = SimpleNamespace(settings=settings.model_copy(update={"event_retention_days": 400}), database=database)
    context: dict[str, Any] = {"worker": worker}

    await retention.ensure_event_partitions(context)
    await retention.drop_expired_events(context)

    async with database.engine.connect() as connection:
        today = await database_time(connection)
        months = {partition_name(*month) for month in months_from(today.date(), 3)}
        assert await existing_partitions(connection) == {*months, "events_default"}
    assert await rows(database, "SELECT count(*) FROM events") == [1]


@pytest.mark.parametrize("seconds", [-TWO_YEARS, TWO_YEARS])
async def test_a_workers_row_is_dated_by_the_database_and_its_loops_by_the_monotonic_clock(
    database: Database, uow: OpenUnitOfWork, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress()
    progress.alive_at["outbox-0"] = asyncio.get_running_loop().time()
    heartbeat = heart(database, progress)
    mislead(monkeypatch, seconds)
    await heartbeat.beat()
    assert await rows(database, "SELECT abs(extract(epoch FROM now() - started_at)) < 60 FROM workers") == [True]
    async with uow() as unit:
        (worker,) = await control.workers(unit)
    assert worker.complaint is None
    assert worker.stuck_seconds < 60


async def test_a_workers_row_shows_the_skew_of_its_clock(
    database: Database, uow: OpenUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat = heart(database, Progress())
    shift_the_host(monkeypatch, -90)
    await heartbeat.beat()
    async with uow() as unit:
        (worker,) = await control.workers(unit)
    assert worker.report["clock_skew"] == pytest.approx(-90, abs=0.4)
    assert worker.complaint is None

    step_the_host(monkeypatch, HOUR)
    # It compares the clocks at every second beat.
    for _ in range(2):
        await heartbeat.beat()
    async with uow() as unit:
        (worker,) = await control.workers(unit)
    assert worker.complaint is not None
    assert "this host's clock" in worker.complaint
