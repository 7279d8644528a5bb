"""Whatever happens to a worker at any await of the processor, nothing is lost, doubled or out of order.

Awaits are counted until a run ends without harm. At an await, a worker is killed, loses its connection, or is stopped
for longer than its transaction may idle, while another does the work. It is killed at each await; the other two happen
at some of them, and at each with `WAYBILL_TEST_LONG=1`.
"""

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import Tick, append, damage, effects, rows
from tests.faults.stepping_worker import METHODS, Deed, Steps, run, work
from tests.processes import wait_until

IDLE = 0.25
"""Seconds that a transaction may idle."""

LONG = bool(os.environ.get("WAYBILL_TEST_LONG"))
FEWEST_AWAITS = 60
"""The least number of awaits in the scenario: fewer would prove less than they seem to."""

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.faults.stepping_worker"])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"database_idle_in_transaction_timeout": IDLE, "database_pool_size": 2})


async def write_events(database: Database) -> None:
    """Events that succeed, fail once, die, and arrive behind a dead letter; two of each."""
    await damage(database, "TRUNCATE outbox, events, dead_letters, effects")
    await append(database, Tick(name="dead"))
    await rows(
        database,
        "WITH dead AS (DELETE FROM outbox RETURNING *) INSERT INTO dead_letters"
        " (position, event_id, aggregate, type, attempts, error)"
        " SELECT position, event_id, aggregate, type, 2, 'before' FROM dead",
    )
    names = ("a", "bad", "late", "b", "dead")
    await append(database, *(Tick(name=name, number=number) for number in range(2) for name in names))


async def assert_once_and_in_order(database: Database, at: str) -> None:
    took_effect = await effects(database)
    assert len(took_effect) == 6, at
    for name in ("a", "b", "late"):
        assert [number for other, number in took_effect if other == name] == [0, 1], at
    tocks = "SELECT payload ->> 'name', CAST(payload ->> 'number' AS integer) FROM events WHERE type = 'test.tock'"
    assert sorted(await rows(database, tocks)) == sorted(took_effect), at
    dead = "SELECT aggregate, attempts FROM dead_letters ORDER BY 1"
    assert await rows(database, dead) == [("tick/bad", 2), ("tick/dead", 2)], at
    waiting = "SELECT aggregate FROM outbox WHERE waits = 'behind' AND available_at = 'infinity' ORDER BY 1"
    assert await rows(database, waiting) == ["tick/bad"] + ["tick/dead"] * 2, at
    assert await rows(database, "SELECT count(*) FROM outbox") == [3], at


def start(settings: Settings, deed: Deed, step: int, log: Path) -> ForkServerProcess:
    log.unlink(missing_ok=True)
    process = _PROCESSES.Process(target=run, args=(settings, deed, step, log), daemon=True)
    process.start()
    return process


async def finish(process: ForkServerProcess) -> int:
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode is not None, "the worker hangs"
    return process.exitcode


def assert_all_was_met(step: int, names: set[str]) -> None:
    assert step > FEWEST_AWAITS
    pairs = {f"{when} {what}" for when in ("before", "after") for what in (*METHODS, "handler", "write", "commit")}
    assert names >= pairs | {"before savepoint", "after savepoint", "before release", "after release"}


async def test_a_worker_that_is_killed_at_any_await_loses_nothing_and_does_nothing_twice(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    log, step, killed = tmp_path / "steps", 0, True
    names: list[str] = []
    seen: set[str] = set()
    while killed:
        step += 1
        await write_events(ticking)
        code = await finish(start(settings, Deed.kill, step, log))
        names = log.read_text().splitlines()
        killed = len(names) == step and code == -signal.SIGKILL
        assert killed or code == 0, f"await {step}: ended with {code}"
        seen.update(names)
        # Another worker takes over what this one has left.
        await work(settings, Steps(Deed.nothing, 0, settings.database_url, tmp_path / "others"))
        await assert_once_and_in_order(ticking, f"killed at await {step}, {names[-1]}")
    assert_all_was_met(step, seen)


async def test_a_worker_that_loses_its_connection_at_any_await_loses_nothing_and_does_nothing_twice(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    log, step, harmed = tmp_path / "steps", 0, True
    while harmed:
        step += 1 if LONG else 3
        await write_events(ticking)
        log.unlink(missing_ok=True)
        await work(settings, Steps(Deed.terminate, step, settings.database_url, log))
        names = log.read_text().splitlines()
        harmed = len(names) >= step
        await assert_once_and_in_order(ticking, f"cut off at await {step}, {names[step - 1] if harmed else 'none'}")
    assert_all_was_met(step, set(names))


async def test_a_worker_that_is_stopped_for_longer_than_its_transaction_may_idle_does_no_harm_when_it_resumes(
    ticking: Database, settings: Settings, tmp_path: Path
) -> None:
    log, step, stopped = tmp_path / "steps", 1, True
    while stopped:
        await write_events(ticking)
        process = start(settings, Deed.stop, step, log)
        assert process.pid is not None
        await asyncio.to_thread(wait_until, lambda: state_of(process) in "TZX", "the worker to stop", 30)  # noqa: B023
        stopped = state_of(process) == "T"
        if stopped:
            # Its transaction is rolled back by the server, and another worker continues.
            await asyncio.sleep(IDLE * 1.2)
            await work(settings, Steps(Deed.nothing, 0, settings.database_url, tmp_path / "others"))
            os.kill(process.pid, signal.SIGCONT)
        assert await finish(process) == 0
        await assert_once_and_in_order(ticking, f"stopped at await {step}")
        step += 1 if LONG else 7

    assert step > FEWEST_AWAITS


def state_of(process: ForkServerProcess) -> str:
    """The letter that Linux says: T for stopped, Z for ended."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
