"""Workers report themselves; the check names one that hangs, is blocked or has gone."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.service import By, WorkerState
from services.settings import Settings
from services.skew import Skew
from services.startup import Schema
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.processes import running_worker
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


async def no_queue() -> int | None:
    return None


def heart(database: Database, progress: Progress) -> Heartbeat:
    return Heartbeat(
        lambda: UnitOfWork(database.write),
        progress,
        JobMetrics(),
        no_queue,
        Skew(300.0),
        Schema("public"),
        versions={"a": 1, "b": 2},
        time_limit=30.0,
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
