"""What happens to a worker whose handler does not end, and what its health check says."""

import asyncio
import re
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.database import Database
from services.outbox.control import service as control
from services.settings import Settings
from tests.concurrency.ticks import Tick, append, effects, rows
from tests.faults.stubborn_worker import BEAT
from tests.processes import Running, running
from worker.guard import BROKEN

TIME_LIMIT = 1.0
PATIENCE = 2.0
"""Seconds of silence, and beyond the time limit, that the check allows here; in production it allows 20 and 30."""

pytestmark = pytest.mark.usefixtures("_check_on_this_database")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    wanted = {"outbox_time_limit": TIME_LIMIT, "outbox_retry_base": 0.05, "outbox_poll_interval": 0.2}
    return settings.model_copy(update=wanted)


@pytest.fixture
def _check_on_this_database(_settings_of_commands: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SILENT", PATIENCE)
    monkeypatch.setattr(control, "_PATIENCE", PATIENCE)
    assert BEAT < PATIENCE / 4


async def check() -> tuple[int, str]:
    """The exit code of `waybill workers check`, and its output."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["workers", "check"])
    return result.exit_code, result.output


async def checked(code: int, worker: Running) -> str:
    """The output of the check, as soon as it ends with this exit code."""
    said = ""
    for _ in range(60):
        ended, said = await check()
        if ended == code:
            return said
        await asyncio.sleep(0.25)
    raise AssertionError(f"the check never ended with {code}, but says {said!r}; the worker: {worker.said()}")


async def wait_for_effects(database: Database, number: int, worker: Running) -> list[tuple[str, int]]:
    for _ in range(300):
        if len(found := await effects(database)) >= number:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"no {number} effects within 30 s: {worker.said()}")


def stubborn(settings: Settings, folder: Path, manner: str) -> AbstractContextManager[Running]:
    return running(["-m", "tests.faults.stubborn_worker", manner], settings, folder / "worker.log")


@pytest.mark.parametrize(
    ("manner", "complaint"),
    [
        ("block", r"no heartbeat for \d+ s: it is gone, or its event loop is blocked"),
        ("stay", r"no progress for \d+ s"),
    ],
)
async def test_the_check_names_the_worker_whose_handler_does_not_end_and_why(
    ticking: Database, settings: Settings, tmp_path: Path, manner: str, complaint: str
) -> None:
    with stubborn(settings, tmp_path, manner) as worker:
        assert await checked(0, worker) == ""
        await append(ticking, Tick(name="bad"))
        said = await checked(1, worker)
        # SIGTERM would not end it.
        worker.kill()
    assert re.search(rf"{worker.process.pid}: {complaint}", said), said
    assert await effects(ticking) == []


async def test_a_worker_recovers_from_a_handler_that_hangs(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    with stubborn(settings, tmp_path, "hang") as worker:
        await checked(0, worker)
        await append(ticking, Tick(name="bad"), Tick(name="bad", number=1))
        await append(ticking, Tick(name="good"))
        found = await wait_for_effects(ticking, 3, worker)
        assert await checked(0, worker) == ""
    # Once each, in the order of the aggregate; the hanging attempt is counted and left nothing.
    assert sorted(found) == [("bad", 0), ("bad", 1), ("good", 0)]
    assert [number for name, number in found if name == "bad"] == [0, 1]
    assert "did not finish within" in worker.said()
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [0]


@pytest.mark.parametrize(
    ("manner", "code"), [("die", -signal.SIGKILL), ("block", BROKEN), ("cancel itself", BROKEN)], ids=str
)
async def test_an_event_that_ends_the_worker_each_time_is_found_and_counted_and_costs_its_neighbours_nothing(
    ticking: Database, settings: Settings, tmp_path: Path, manner: str, code: int
) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "bad", "b")))
    wanted = settings.model_copy(update={"worker_stall_limit": 4 * TIME_LIMIT})
    deaths = 0
    attempts: set[int] = set()
    with stubborn(wanted, tmp_path, manner) as worker:
        async with asyncio.timeout(120):
            while len(await effects(ticking)) < 3:
                attempts.update(await rows(ticking, "SELECT attempts FROM outbox WHERE aggregate = 'tick/bad'"))
                if not worker.lives:
                    assert worker.process.returncode == code, worker.said()
                    deaths += 1
                    worker.start_again()
                await asyncio.sleep(0.05)
    # Once without a warning, once with its neighbours and once alone. Its second attempt alone succeeds.
    assert deaths == 3
    assert attempts >= {0, 1}
    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0), ("bad", 0)]
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]


async def test_a_worker_that_ends_in_good_order_makes_no_one_wary(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    with stubborn(settings, tmp_path, "hang") as worker:
        await append(ticking, Tick(name="a"))
        await wait_for_effects(ticking, 1, worker)
        assert await asyncio.to_thread(worker.terminate, 10) == 0
        assert await rows(ticking, "SELECT count(*) FROM workers") == [0]
