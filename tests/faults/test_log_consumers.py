"""Log consumers in real workers: one is suspended in the middle of a batch and comes back, one is killed."""

import os
import signal
from pathlib import Path

import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.log_readers import Noted, note
from tests.concurrency.ticks import rows
from tests.faults.test_jobs import until
from tests.processes import running


@pytest.fixture
async def told_log(database: Database) -> Database:
    await rows(database, "CREATE TABLE told (pid integer, number integer)")
    await rows(database, "CREATE TABLE beginnings (pid integer)")
    await note(database, *(Noted(name="a", number=number) for number in range(3)))
    return database


TOLD = "SELECT array_agg(number ORDER BY number) FROM told"


async def test_a_worker_that_was_suspended_in_a_batch_comes_back_and_changes_nothing(
    told_log: Database, settings: Settings, tmp_path: Path
) -> None:
    with running(["-m", "tests.faults.consumer_worker", "2"], settings, tmp_path / "one.log") as first:
        await until(told_log, "SELECT pid FROM beginnings", first.process.pid, first)
        os.kill(first.process.pid, signal.SIGSTOP)
        try:
            with running(["-m", "tests.faults.consumer_worker", "0"], settings, tmp_path / "two.log") as second:
                await until(told_log, TOLD, [0, 1, 2], second)
                os.kill(first.process.pid, signal.SIGCONT)
                # It finishes its batch, and finds that the lease is lost.
                for _ in range(100):
                    if "is lost" in first.said():
                        break
                    await rows(told_log, "SELECT pg_sleep(0.1)")
                assert "is lost" in first.said()
                await note(told_log, Noted(name="a", number=3))
                await until(told_log, TOLD, [0, 1, 2, 3], second)
        finally:
            os.kill(first.process.pid, signal.SIGCONT)
        assert second.process.pid in await rows(told_log, "SELECT DISTINCT pid FROM told WHERE number < 3")
        assert await rows(told_log, "SELECT count(DISTINCT pid) FROM told WHERE number < 3") == [1]


async def test_the_consumer_of_a_killed_worker_is_taken_over_with_the_whole_batch(
    told_log: Database, settings: Settings, tmp_path: Path
) -> None:
    with running(["-m", "tests.faults.consumer_worker", "3600"], settings, tmp_path / "one.log") as first:
        await until(told_log, "SELECT pid FROM beginnings", first.process.pid, first)
        first.kill()
        with running(["-m", "tests.faults.consumer_worker", "0"], settings, tmp_path / "two.log") as second:
            await until(told_log, TOLD, [0, 1, 2], second)
    assert await rows(told_log, "SELECT DISTINCT pid FROM told") == [second.process.pid]
