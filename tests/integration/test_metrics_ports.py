"""The port on which each process serves its metrics."""

import asyncio
import socket
from collections.abc import Iterator
from time import sleep

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from services import exposition
from services.exposition import LoopLag, MetricsServer
from services.local.embedded.ports import LOOPBACK, any_free_port
from services.settings import Environment, Settings
from worker.context import open_worker

TOKEN = "a-token-for-the-scraper"


@pytest.fixture
def port() -> int:
    return any_free_port()


@pytest.fixture
def served(settings: Settings, port: int) -> Iterator[str]:
    """The address of metrics that are protected by a token."""
    guarded = settings.model_copy(update={"metrics_token": SecretStr(TOKEN), "environment": Environment.production})
    with MetricsServer(guarded, port, lambda: b"metrics\n"):
        yield f"http://{LOOPBACK}:{port}"


def test_only_the_holder_of_the_token_reads_the_metrics(served: str) -> None:
    for given in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
        refused = httpx2.get(f"{served}/metrics", headers=given)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.text == "the metrics token is required: Authorization: Bearer TOKEN\n"
    token = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx2.get(f"{served}/metrics", headers=token).text == "metrics\n"
    assert httpx2.get(f"{served}/elsewhere", headers=token).status_code == 404
    assert httpx2.post(f"{served}/metrics", headers=token).status_code == 405


def test_without_a_token_they_are_open_in_development_only(settings: Settings, port: int) -> None:
    for environment, status in ((Environment.production, 404), (Environment.development, 200)):
        with MetricsServer(settings.model_copy(update={"environment": environment}), port, lambda: b""):
            assert httpx2.get(f"http://{LOOPBACK}:{port}/metrics").status_code == status


def test_each_process_takes_the_first_free_port(settings: Settings, port: int) -> None:
    with MetricsServer(settings, port, lambda: b"one") as one, MetricsServer(settings, port, lambda: b"two") as two:
        assert one.port == port
        assert two.port is not None
        assert port < two.port < port + exposition.PORTS
        assert httpx2.get(f"http://{LOOPBACK}:{two.port}/metrics").text == "two"
    with MetricsServer(settings, 0, lambda: b"") as none:
        assert none.port is None


def test_a_process_runs_without_metrics_if_no_port_is_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exposition, "PORTS", 1)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with MetricsServer(settings, taken.getsockname()[1], lambda: b"") as server:
            assert server.port is None
    assert "no metrics: cannot listen" in caplog.text


def test_the_metrics_of_a_process_that_does_not_answer_are_a_503(settings: Settings, port: int) -> None:
    def hang() -> bytes:
        raise TimeoutError

    with MetricsServer(settings, port, hang):
        assert httpx2.get(f"http://{LOOPBACK}:{port}/metrics").status_code == 503


async def test_a_worker_serves_zeros_for_its_types_before_the_first_event(settings: Settings, port: int) -> None:
    configured = settings.model_copy(update={"worker_metrics_port": port})
    async with open_worker(configured), httpx2.AsyncClient() as client:
        read = (await client.get(f"http://{LOOPBACK}:{port}/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values()))
        for family in text_string_to_metric_families(read)
        for sample in family.samples
    }
    assert ("waybill_events_processed_total", "order.placed") in samples
    assert ("waybill_events_failed_total", "order.placed", "worker_died") in samples
    assert ("waybill_event_queue_seconds_count", "order.placed") in samples
    assert ("waybill_worker_wakeups_total", "doorbell") in samples
    assert ("waybill_database_pool_connections", "in_use", "polling") in samples
    assert ("waybill_event_loop_lag_seconds_count",) in samples


def test_the_loop_lag_shows_what_blocks_the_loop() -> None:
    def slow() -> float:
        """How many measurements were late by more than a tenth of a second."""
        (lag,) = (one for one in exposition.registry.collect() if one.name == "waybill_event_loop_lag_seconds")
        samples = {(one.name, one.labels.get("le")): one.value for one in lag.samples}
        return (
            samples["waybill_event_loop_lag_seconds_count", None]
            - samples["waybill_event_loop_lag_seconds_bucket", "0.1"]
        )

    async def block() -> None:
        async with LoopLag():
            await asyncio.sleep(0.05)
            sleep(0.6)  # noqa: ASYNC251 (it is meant to block)
            await asyncio.sleep(0.05)

    before = slow()
    asyncio.run(block())
    assert slow() > before
