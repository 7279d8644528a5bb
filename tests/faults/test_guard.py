"""A worker that makes no progress, or has lost one of its tasks, says so and ends."""

import asyncio
import re
from pathlib import Path

import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import Tick, append
from tests.faults.test_heartbeat import some
from tests.faults.test_stubborn_handlers import stubborn

LIMIT = 4.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    wanted = {"outbox_time_limit": 1.0, "outbox_poll_interval": 0.2, "worker_stall_limit": LIMIT}
    return settings.model_copy(update=wanted)


async def ended(database: Database, settings: Settings, folder: Path, manner: str) -> tuple[int, str]:
    """The exit code and the output of a worker whose handler meets a bad tick."""
    with stubborn(settings, folder, manner) as worker:
        await some(database, 1)
        await append(database, Tick(name="bad"))
        code = await asyncio.to_thread(worker.process.wait, 60)
    return code, worker.said()


@pytest.mark.parametrize(
    ("manner", "code", "reason"),
    [
        ("block", 70, "the event loop was blocked for 4 s; this worker exits with code 70"),
        # On a busy machine the second loop may be the one that takes the event.
        ("stay", 70, r"outbox-\d made no progress for 4 s; this worker exits with code 70"),
        ("hog", 1, r"Timeout \(0:00:09\)!"),
    ],
)
async def test_a_worker_that_makes_no_progress_ends_itself_and_says_where_it_is_stuck(
    ticking: Database, settings: Settings, tmp_path: Path, manner: str, code: int, reason: str
) -> None:
    found, said = await ended(ticking, settings, tmp_path, manner)
    assert found == code, said
    assert len(re.findall(reason, said)) == 1, said
    # The stacks name the function that does not end.
    assert f"in {manner}" in said, said


@pytest.mark.parametrize(
    "task", ["outbox-1", "outbox-ear", "outbox-upkeep", "heartbeat", "doorbell", "jobs", "arq", "guard"]
)
async def test_a_worker_that_has_lost_a_task_shuts_down_cleanly_and_names_it(
    ticking: Database, settings: Settings, tmp_path: Path, task: str
) -> None:
    code, said = await ended(ticking, settings, tmp_path, task)
    assert code == 70, said
    assert said.count(f"the task '{task}' was cancelled; this worker stops with exit code 70") == 1, said
    # The handler's batch is committed. The worker's row stays, so that the next worker knows how it ended.
    assert len(await some(ticking, 1)) == 1


async def test_a_worker_whose_shutdown_does_not_end_ends_itself(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    patient = settings.model_copy(update={"worker_stall_limit": 6.0, "worker_shutdown_grace": 4.0})
    with stubborn(patient, tmp_path, "stay") as worker:
        await some(ticking, 1)
        await append(ticking, Tick(name="bad"))
        await asyncio.sleep(1)
        code = await asyncio.to_thread(worker.terminate, 30)
    assert code == 70, worker.said()
    assert "the shutdown made no progress for 8 s" in worker.said()


async def test_a_worker_with_nothing_to_do_is_not_taken_for_a_stuck_one(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    # Less than the job loop waits between two looks.
    impatient = settings.model_copy(update={"outbox_time_limit": 0.5, "worker_stall_limit": 2.5})
    with stubborn(impatient, tmp_path, "stay") as worker:
        await some(ticking, 1)
        await asyncio.sleep(6)
        assert worker.process.poll() is None, worker.said()
        code = await asyncio.to_thread(worker.terminate, 30)
    assert code == 0, worker.said()
