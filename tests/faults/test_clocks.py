"""Processes on hosts with wrong clocks: if far off they do not start, if a little off they do no harm."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx2
import pytest

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.faults.test_heartbeat import some
from tests.faults.test_lost_replies import answers, post
from tests.processes import Running, running, running_worker, wait_until

HOUR = 3600.0


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    """Holds the number of seconds by which the clock of the shifted process is ahead."""
    return tmp_path / "shift"


def shifted(shift: Path, *arguments: str) -> Sequence[str]:
    return ["-m", "tests.faults.shifted", str(shift), *arguments]


def api_on(port: int) -> tuple[str, ...]:
    return ("services.cli", "api", "--port", str(port))


def replace(path: Path, content: str) -> None:
    """Replaces the file atomically: the process may read it at any time."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(600):
        if await condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("not within a minute")


def ended(process: Running) -> int:
    wait_until(lambda: not process.lives, "the end of the process")
    code = process.process.poll()
    assert code is not None
    return code


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
@pytest.mark.parametrize("kind", ["api", "worker"])
def test_a_process_does_not_start_with_a_clock_that_is_far_off(
    settings: Settings, tmp_path: Path, shift: Path, seconds: float, kind: str
) -> None:
    replace(shift, str(seconds))
    arguments = api_on(any_free_port()) if kind == "api" else ("worker",)
    with running(shifted(shift, *arguments), settings, tmp_path / "process.log") as process:
        assert ended(process) not in (0, None)
    side = "ahead of" if seconds > 0 else "behind"
    (line,) = [line for line in process.said().splitlines() if "this host's clock is" in line]
    assert f"{side} the database's and WAYBILL_MAX_CLOCK_SKEW allows 300 s: correct the wrong one" in line
    assert "Traceback" not in process.said()


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
async def test_an_order_of_an_api_whose_clock_is_an_hour_off_is_confirmed(
    database: Database, settings: Settings, tmp_path: Path, shift: Path, seconds: float
) -> None:
    replace(shift, str(seconds))
    wrong = settings.model_copy(update={"hold_ttl": 60, "max_clock_skew": 2 * HOUR})
    buyer, product = await make_user(database, credits="100"), await make_product(database, price="4.00")
    headers = {
        "Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(buyer.id))}",
        "Idempotency-Key": "k-1",
    }
    port = any_free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running(shifted(shift, *api_on(port)), wrong, tmp_path / "api.log") as api,
        running_worker(settings, tmp_path / "worker.log"),
    ):
        wait_until(lambda: answers(url), "the API")
        body = {"items": [{"product_id": product.id, "quantity": 2}]}
        assert post(f"{url}/v1/orders", body, headers).status_code == 201

        async def settled() -> bool:
            return await rows(database, "SELECT status FROM orders") != ["pending"]

        await eventually(settled)
        metrics = (await asyncio.to_thread(httpx2.get, f"{url}/metrics")).text
    assert await rows(database, "SELECT status FROM orders") == ["confirmed"]
    (skew,) = [line for line in metrics.splitlines() if line.startswith("waybill_clock_skew_seconds ")]
    assert float(skew.split()[1]) == pytest.approx(seconds, abs=5)
    assert api.said().count("this host's clock is 3,") == 1
    assert await rows(database, "SELECT abs(extract(epoch FROM now() - created_at)) < 60 FROM orders") == [True]
    # The API's event and the worker's, in the current month.
    assert await rows(database, "SELECT count(*) FROM events_default") == [0]


async def test_a_worker_whose_clock_is_set_while_it_runs_reports_it_and_recovers(
    database: Database, settings: Settings, tmp_path: Path, shift: Path
) -> None:
    replace(shift, "0")
    with running(shifted(shift, "worker"), settings, tmp_path / "worker.log") as worker:

        async def complains() -> bool:
            (one,) = await some(database, 1)
            return one.complaint is not None

        async def is_well() -> bool:
            return not await complains()

        assert await is_well()
        replace(shift, str(-HOUR))
        await eventually(complains)
        replace(shift, "0")
        await eventually(is_well)
        assert worker.lives
    assert worker.said().count("this host's clock is") == 1
    assert "agrees with the database's again" in worker.said()
