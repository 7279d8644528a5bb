"""Spans of a real API process and a real worker reach a real receiver; one that hangs or is away costs only spans."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import httpx2
import pytest

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import any_free_port
from services.settings import LogFormat, Settings
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.otlp import receiving
from tests.processes import Running, running_api, running_worker, wait_until

API, WORKER = "waybill-api", "waybill-worker"
CONFIRMED = "SELECT count(*) FROM orders WHERE status = 'confirmed'"


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    # Longer than any test: nothing but the process itself may end a wait for the receiver.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    return settings.model_copy(update={"tracing": True, "log_format": LogFormat.json})


@asynccontextmanager
async def running_both(settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[Running, Running, str]]:
    with (
        running_api(settings, tmp_path / "api.log") as (api, url),
        running_worker(settings, tmp_path / "worker.log") as worker,
    ):
        async with httpx2.AsyncClient(base_url=url) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx2.TransportError:
                    return False

            while not await answers():
                assert api.lives, api.said()
                await asyncio.sleep(0.05)
        yield api, worker, url


async def place(settings: Settings, database: Database, url: str, number: int) -> list[httpx2.Response]:
    product = await make_product(database, stock=1000)
    buyer = await make_user(database, credits="100000")
    headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(buyer.id))}"}
    async with httpx2.AsyncClient(base_url=url, timeout=30.0, headers=headers) as client:
        return [
            await client.post(
                "/v1/orders",
                headers={"Idempotency-Key": f"order-{one}"},
                json={"items": [{"product_id": product.id, "quantity": 1}], "reference": f"canary {one}"},
            )
            for one in range(number)
        ]


async def until_confirmed(database: Database, number: int) -> None:
    async with asyncio.timeout(60):
        for _ in count():
            if await rows(database, CONFIRMED) == [number]:
                return
            await asyncio.sleep(0.05)


async def stop(api: Running, worker: Running) -> None:
    """As a supervisor does. The server ends by the signal that has stopped it, once it has shut down."""
    codes = await asyncio.to_thread(lambda: (worker.terminate(25.0), api.terminate(25.0)))
    assert codes == (0, -signal.SIGTERM), api.said() + worker.said()
    assert "Application shutdown complete" in api.said()


async def test_a_collector_gets_a_request_its_group_its_batch_and_its_event(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        async with running_both(settings, tmp_path) as (api, worker, url):
            replies = await place(settings, database, url, 3)
            assert [reply.status_code for reply in replies] == [201] * 3
            await until_confirmed(database, 3)
            # What is left is exported when they stop.
            await stop(api, worker)

        requests = {span.span_id: span for span in receiver.named(API, "POST /v1/orders")}
        assert len(requests) == 3
        events = receiver.named(WORKER, "process order.placed")
        assert {span.parent_span_id for span in events} == requests.keys()
        assert all(span.trace_id == requests[span.parent_span_id].trace_id for span in events)
        batches = receiver.named(WORKER, "process events")
        assert {link.span_id for span in batches for link in span.links} >= requests.keys()
        assert {link.span_id for span in events for link in span.links} <= {span.span_id for span in batches}
        groups = {span.span_id for span in receiver.named(API, "group of requests")}
        assert all({link.span_id for link in span.links} <= groups for span in requests.values())
        assert any(span.name.startswith("LPUSH") for span in receiver.spans[API]), "the doorbell"
        # Nothing but these has begun a trace: no look at the outbox, no probe and no heartbeat.
        roots = {span.name for service in receiver.spans.values() for span in service if not span.parent_span_id}
        assert {name for name in roots if not name.startswith(("job ", "consume "))} == {
            "POST /v1/orders",
            "group of requests",
            "process events",
            "ring the doorbell",
        }
        assert not any(b"canary" in body for body in receiver.bodies)
        logged = [line for line in api.said().splitlines() if '"event":"request"' in line]
        assert [f'"trace_id":"{span.trace_id.hex()}"' in "".join(logged) for span in requests.values()] == [True] * 3


@pytest.mark.parametrize("fault", ["hangs", "is away"])
async def test_a_collector_that_does_not_answer_stops_nothing(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    # Few enough for the queue to overflow.
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with receiving(hangs=True) as receiver:
        away = f"http://127.0.0.1:{any_free_port()}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address if fault == "hangs" else away)
        async with running_both(settings, tmp_path) as (api, worker, url):
            replies = await place(settings, database, url, 40)
            assert [reply.status_code for reply in replies] == [201] * 40
            await until_confirmed(database, 40)
            if fault == "hangs":
                await asyncio.to_thread(wait_until, lambda: receiver.requests >= 2, "both to have sent spans")
            await stop(api, worker)
            if fault == "is away":
                assert worker.said().count("Transient error") == 1, "it is logged once a minute"
