"""Workers are scaled from one to eight and back under load: nothing is lost, and all that is shown stays right."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import psycopg
import pytest
from pydantic import SecretStr

from benchmarks.sessions import session_of
from benchmarks.shop import open_shop, place_waiting
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from services.users.rights import Role
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.faults.test_workers import ONCE_EACH, balanced
from tests.faults.watched import Watch, total, watched
from tests.processes import Running, running_api, running_worker, wait_until

TOKEN = "a-token-for-the-scraper"
UP, DOWN = (1, 2, 4, 8), (4, 2, 1)
ORDERS_A_STEP = 600
EXTRA = ORDERS_A_STEP * (len(UP) + len(DOWN))

RELEASE = """
    INSERT INTO outbox (event_id, aggregate, type, version)
    SELECT event_id, aggregate, 'order.placed', 1 FROM waiting WHERE n > %(after)s AND n <= %(last)s ORDER BY n
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Small batches, so that a worker is always in the middle of one, and a port for each worker's metrics."""
    return settings.model_copy(
        update={
            "outbox_batch_size": 20,
            "outbox_poll_interval": 0.2,
            "metrics_token": SecretStr(TOKEN),
            "worker_metrics_port": any_free_port(),
            "worker_processes": max(UP),
        }
    )


class Clients:
    """Place orders from entry to exit, one after the other, except while they are told to wait."""

    def __init__(self, client: httpx2.AsyncClient, product_id: int) -> None:
        self._client = client
        self._product_id = product_id
        self._may = asyncio.Event()
        self._between = asyncio.Event()
        self.placed = 0

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        self._may.set()
        placing = asyncio.create_task(self._place())
        try:
            yield
            assert not placing.done(), placing.exception()
        finally:
            placing.cancel()
            await asyncio.gather(placing, return_exceptions=True)

    async def pause(self) -> None:
        """Return when no order is on its way."""
        self._may.clear()
        await self._between.wait()

    def resume(self) -> None:
        self._between.clear()
        self._may.set()

    async def _place(self) -> None:
        while True:
            if not self._may.is_set():
                self._between.set()
                await self._may.wait()
            reply = await self._client.post(
                "/v1/orders",
                headers={"Idempotency-Key": f"order-{self.placed}"},
                json={"items": [{"product_id": self._product_id, "quantity": 1}]},
            )
            assert reply.status_code == 201, reply.text
            self.placed += 1
            await asyncio.sleep(0.05)


async def eventually(condition: object, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, 120.0)  # type: ignore[arg-type]


async def shown_workers(watch: Watch, number: int) -> None:
    """Wait until so many workers are shown, in good health, by both routes that count them."""
    for _ in range(400):
        workers = await watch.get("/v1/operations/workers")
        (placed,) = (one for one in await watch.get("/v1/operations/types") if one["type"] == "order.placed")
        if len(workers) == number == placed["workers"]:
            assert [one["complaint"] for one in workers] == [None] * number
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{number} workers run, but {len(workers)} and {placed['workers']} are shown")


async def processed_by(workers: list[Running]) -> float:
    """The events that these workers' own metrics count as processed."""
    number = 0.0
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client:
        for worker in workers:
            (address,) = re.findall(r"metrics on (http://[\d.]+:\d+/metrics)", worker.said())
            number += total((await client.get(address)).text, "waybill_events_processed_total")
    return number


async def test_workers_are_added_and_stopped_under_load_and_nothing_is_lost_done_twice_or_shown_wrongly(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    place_waiting(database_url, open_shop(database_url, buyers=20), EXTRA, items=1)
    seller = await make_user(database, email="seller@example.net")
    product = await make_product(database, seller=seller, stock=1_000_000)
    buyer = await make_user(database, email="buyer@example.net", credits="1000000")
    operator = await make_user(database, email="operator@example.net", role=Role.operator)
    tokens = Tokens.from_settings(settings)
    started: list[Running] = []
    released = 0
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(ExitStack())
        _, url = stack.enter_context(running_api(settings, tmp_path / "api.log"))
        sql = stack.enter_context(psycopg.connect(database_url, autocommit=True))
        await eventually(lambda: answers(url), "the API")

        async def client_of(bearer: str) -> httpx2.AsyncClient:
            headers = {"Authorization": f"Bearer {bearer}"}
            return await stack.enter_async_context(httpx2.AsyncClient(base_url=url, headers=headers, timeout=30))

        def waiting() -> int:
            found = sql.execute("SELECT count(*) FROM outbox").fetchone()
            assert found is not None
            return int(found[0])

        def release() -> None:
            nonlocal released
            sql.execute(RELEASE, {"after": released, "last": released + ORDERS_A_STEP})
            released += ORDERS_A_STEP

        clients = Clients(await client_of(tokens.make(session_of(buyer.id))), product.id)
        asking, scraping = await client_of(tokens.make(session_of(operator.id))), await client_of(TOKEN)
        async with watched(database_url, asking, scraping) as watch, clients.busy():
            for number in UP:
                release()
                while len(started) < number:
                    log = tmp_path / f"worker-{len(started)}.log"
                    started.append(processes.enter_context(running_worker(settings, log)))
                await shown_workers(watch, number)

            await clients.pause()
            await eventually(lambda: waiting() == 0, "an empty outbox")
            assert await rows(database, ONCE_EACH) == [released + clients.placed]
            assert await processed_by(started) == released + clients.placed
            clients.resume()

            in_the_middle = 0
            for number in DOWN:
                release()
                leaving, started = started[number:], started[:number]
                for worker in leaving:
                    worker.process.terminate()
                in_the_middle += waiting() > 0
                codes = [await asyncio.to_thread(worker.process.wait, 30) for worker in leaving]
                assert codes == [0] * len(leaving), [worker.said()[-2000:] for worker in leaving]
                await shown_workers(watch, number)
            await clients.pause()
            await eventually(lambda: waiting() == 0, "an empty outbox")

    assert in_the_middle > 0, "the workers were stopped too late to prove anything"
    assert (released, watch.lies()) == (EXTRA, [])
    assert watch.rounds > 10
    assert await rows(database, ONCE_EACH) == [EXTRA + clients.placed]
    assert await rows(database, "SELECT count(*) FROM orders") == [EXTRA + clients.placed]
    assert await rows(database, "SELECT count(*) FROM dead_letters") == [0]
    assert await balanced(database)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).is_success
    except httpx2.TransportError:
        return False
