"""Real processes at once on the same aggregates: every event once, and in order."""

import re
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import Tick, append, effects
from tests.processes import running, wait_until


@pytest.mark.parametrize("workers", [2, 4])
async def test_events_of_one_aggregate_take_effect_in_order_in_several_processes_one_of_which_is_killed(
    ticking: Database, database_url: str, settings: Settings, tmp_path: Path, workers: int
) -> None:
    names, length = [f"n{number}" for number in range(40)], 40
    for number in range(length):
        await append(ticking, *(Tick(name=name, number=number) for name in names))

    with ExitStack() as stack:
        started = [
            stack.enter_context(
                running(
                    ["-m", "tests.concurrency.tick_worker", str(number)], settings, tmp_path / f"worker-{number}.log"
                )
            )
            for number in range(workers)
        ]
        with psycopg.connect(database_url, autocommit=True) as watch:
            wait_until(lambda: bool(watch.execute("SELECT 1 FROM effects LIMIT 1").fetchone()), "the first effect")
            started[0].kill()
            left = watch.execute("SELECT count(*) FROM outbox").fetchone()
            started[0].start_again()
            wait_until(lambda: not watch.execute("SELECT 1 FROM outbox LIMIT 1").fetchone(), "an empty outbox", 90)
        said = "".join(worker.said() for worker in started)

    assert left != (0,), "the worker was killed too late to prove anything"
    took_effect = await effects(ticking)
    assert len(took_effect) == len(names) * length
    for name in names:
        assert [number for other, number in took_effect if other == name] == list(range(length)), name
    assert "Traceback" not in re.sub(r"(?s)event .*? failed", "", said)
    assert set(re.findall("rolled back: (.*)", said)) <= {"40P01"}
