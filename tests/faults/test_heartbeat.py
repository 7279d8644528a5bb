"""Workers report themselves; the check names one that hangs, is blocked or has gone."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkKind
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control import service as control
from services.outbox.control.schemas import By, WorkerState
from services.settings import Settings
from services.skew import Skew
from services.startup import Schema
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.processes import running_worker, wait_until
from worker.heartbeat import Heartbeat
from worker.jobs.metrics import JobMetrics
from worker.jobs.retention import LOST_WORKERS
from worker.poller import Progress

SECOND = 1.0


async def listed(database: Database) -> list[WorkerState]:
    async with UnitOfWork(database.write) as uow:
        return await control.workers(uow)


async def some(database: Database, number: int) -> list[WorkerState]:
    """The workers, as soon as this many are listed."""
    for _ in range(300):
        found = await listed(database)
        if len(found) >= number:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"no {number} workers within 30 s")


async def until(database: Database, met: Callable[[list[Any]], bool], statement: str) -> None:
    """Wait until the statement returns the expected rows."""
    for _ in range(600):
        if met(await rows(database, statement)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within a minute: {statement}")


async def complaint_that(database: Database, met: Callable[[str | None], bool]) -> str | None:
    """The complaint of the only worker, as soon as it meets the condition."""
    for _ in range(600):
        (one,) = await listed(database)
        if met(one.complaint):
            return one.complaint
        await asyncio.sleep(0.1)
    raise AssertionError("not within a minute")


async def no_queue() -> int | None:
    return None


def heart(
    database: Database, progress: Progress, on_bulk_actions: Callable[[bool], None] = lambda _: None
) -> Heartbeat:
    return Heartbeat(
        lambda: UnitOfWork(database.write),
        progress,
        JobMetrics(),
        no_queue,
        Skew(300.0),
        Schema("public"),
        versions={"a": 1, "b": 2},
        time_limit=30.0,
        on_bulk_actions=on_bulk_actions,
    )


async def test_a_real_worker_is_listed_as_well_and_leaves_with_sigterm(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with running_worker(settings, tmp_path / "worker.log") as worker:
        found = await some(database, 1)
        assert [(one.pid, one.complaint) for one in found] == [(worker.process.pid, None)]
        assert found[0].report["types"] == ["order.placed"]
        assert await asyncio.to_thread(worker.terminate, 10) == 0
    assert await listed(database) == []


async def test_a_killed_worker_is_reported_missing(database: Database) -> None:
    progress = Progress()
    await heart(database, progress).beat()
    assert [one.complaint for one in await listed(database)] == [None]
    await rows(database, "UPDATE workers SET beat_at = now() - interval '21 seconds'")
    (gone,) = await listed(database)
    assert gone.complaint is not None
    assert "no heartbeat" in gone.complaint


async def test_a_beat_tells_whether_there_are_bulk_actions(database: Database) -> None:
    told: list[bool] = []
    heartbeat = heart(database, Progress(), told.append)
    await heartbeat.beat()
    async with UnitOfWork(database.write) as uow:
        action = await bulk.start(uow, BulkKind.replay, BulkFilter(type="a"), By("ops", "mended"))
        await uow.commit()
    await heartbeat.beat()
    async with UnitOfWork(database.write) as uow:
        await bulk.cancel(uow, action.id, By("ops"))
        await uow.commit()
    await heartbeat.beat()
    assert told == [False, True, False]


async def test_a_loop_that_hangs_shows_as_no_progress(database: Database) -> None:
    progress = Progress()
    progress.alive_at = {"outbox-0": monotonic(), "outbox-1": monotonic()}
    heartbeat = heart(database, progress)
    await heartbeat.beat()
    assert [one.complaint for one in await listed(database)] == [None]
    # As of a loop that last made progress 61 s ago, with 30 s for a batch and 30 s of patience.
    progress.alive_at["outbox-1"] -= 61
    await heartbeat.beat()
    (stuck,) = await listed(database)
    assert stuck.complaint is not None
    assert "no progress" in stuck.complaint


async def test_the_row_of_a_lost_worker_is_forgotten_after_a_day(database: Database) -> None:
    await heart(database, Progress()).beat()
    async with UnitOfWork(database.write) as uow:
        assert (await take_slice(uow, LOST_WORKERS, None, 10)).ended == 0
        await (await uow.session.connection()).execute(text("UPDATE workers SET beat_at = now() - interval '25 hours'"))
        assert (await take_slice(uow, LOST_WORKERS, None, 10)).ended == 1


async def test_the_successor_of_a_killed_worker_is_healthy_and_deletes_its_row(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with running_worker(settings, tmp_path / "worker.log") as worker:
        (first,) = await some(database, 1)
        worker.kill()
        await rows(database, "UPDATE workers SET beat_at = now() - interval '1 hour'")
        assert [one.complaint is None for one in await listed(database)] == [False]
        worker.start_again()
        await asyncio.to_thread(wait_until, lambda: "deleted the rows of dead workers" in worker.said(), "its look")
        (successor,) = await listed(database)
        assert (successor.pid, successor.complaint) == (worker.process.pid, None)
        assert successor.id != first.id


async def test_a_worker_that_hangs_is_not_taken_for_a_dead_one(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with running_worker(settings, tmp_path / "hanging.log") as hanging:
        await some(database, 1)
        hanging.process.send_signal(signal.SIGSTOP)
        await rows(database, "UPDATE workers SET beat_at = now() - interval '21 seconds'")
        with running_worker(settings, tmp_path / "other.log") as other:
            await some(database, 2)
            # Until its second beat.
            again = "SELECT count(*) FROM workers WHERE pid = {} AND beat_at > started_at + interval '4 seconds'"
            await until(database, lambda found: found[0], again.format(other.process.pid))
            complaints = {one.pid: one.complaint for one in await listed(database)}
            assert "no heartbeat" in (complaints[hanging.process.pid] or "")
            assert complaints[other.process.pid] is None
        hanging.process.send_signal(signal.SIGCONT)


async def test_a_worker_whose_every_batch_fails_says_so_until_one_succeeds(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.outbox.control.service._FAILING", 3.0)
    with running_worker(settings, tmp_path / "worker.log"):
        assert [one.complaint for one in await some(database, 1)] == [None]
        # Every claim fails, and so does every look for due jobs.
        for table in ("outbox_types", "jobs"):
            await rows(database, f"ALTER TABLE {table} RENAME TO {table}_away")
        complaint = await complaint_that(database, lambda complaint: complaint is not None)
        assert complaint is not None
        assert "every " in complaint
        assert "does not exist" in complaint
        for table in ("outbox_types", "jobs"):
            await rows(database, f"ALTER TABLE {table}_away RENAME TO {table}")
        await complaint_that(database, lambda complaint: complaint is None)


async def test_pausing_reaches_two_real_workers_within_two_seconds(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    ticks = (
        "INSERT INTO outbox (event_id, aggregate, type) SELECT gen_random_uuid(), 'x/' || n, 'order.placed'"
        " FROM generate_series(1, 20) AS n"
    )
    with (
        running_worker(settings, tmp_path / "one.log"),
        running_worker(settings, tmp_path / "two.log"),
    ):
        await some(database, 2)
        async with UnitOfWork(database.write) as uow:
            await control.pause(uow, "order.placed", By("ops"))
            await uow.commit()
        await asyncio.sleep(2 * SECOND)
        await rows(database, ticks)
        await asyncio.sleep(3 * SECOND)
        assert await rows(database, "SELECT count(*) FROM outbox WHERE available_at IS NULL") == [20]
        async with UnitOfWork(database.write) as uow:
            await control.pause(uow, "order.placed", By("ops"), paused=False)
            await uow.commit()
        for _ in range(40):
            # Not in the log, so each becomes a dead letter: only whether it is taken matters here.
            if not await rows(database, "SELECT 1 FROM outbox LIMIT 1"):
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("still there two seconds after the type was resumed")
