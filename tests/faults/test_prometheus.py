"""A real Prometheus scrapes real processes: every query of the dashboard and the alerts finds its data."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic, sleep

import httpx2
import pytest
from pydantic import SecretStr

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.audit.schemas import AuditResult
from services.database import Database
from services.fields import now
from services.local.embedded.ports import LOOPBACK, any_free_port
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.factories import make_product, make_user
from tests.processes import ROOT, running, running_worker, wait_until
from tests.prometheus import Prometheus, promtool, rules, running_prometheus

TOKEN = "a-token-for-the-scraper"
API, WORKER = "waybill-api", "waybill-worker"

COMPARISON = re.compile(r"^(.*\S) (?:>|>=|==|<) [\d.]+$", re.DOTALL)

EMPTY_WITHOUT_A_REPLICA = re.compile(r"waybill_replica_\w+")
EMPTY_WHEN_WELL = {
    # Nothing is due.
    "time() - max(waybill_outbox_oldest_due_timestamp_seconds)",
    # There are workers.
    'absent(up{job="waybill-worker"} == 1)',
    # No request has failed.
    'sum(rate(waybill_http_request_duration_seconds_count{status="5xx"}[10s])) / '
    "sum(rate(waybill_http_request_duration_seconds_count[10s]))",
}
"""Queries that return nothing as long as all is well."""


def queries() -> Iterator[str]:
    """What the dashboard and the alerts ask; of an alert, what it compares with its limit."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "waybill.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "10s")
    for rule in rules():
        compared = COMPARISON.match(rule["expr"])
        yield re.sub(r"\[\d+[mh]\]", "[10s]", compared[1] if compared else rule["expr"])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a token, and ports for the metrics of each process."""
    return settings.model_copy(
        update={
            "metrics_token": SecretStr(TOKEN),
            "api_metrics_port": any_free_port(),
            "worker_metrics_port": any_free_port(),
        }
    )


def ports_in(log: str) -> list[str]:
    """The addresses at which processes say that they serve metrics."""
    return re.findall(r"metrics on http://([\d.]+:\d+)/metrics", log)


@asynccontextmanager
async def traffic(settings: Settings, database: Database, address: str) -> AsyncIterator[None]:
    """An order every tenth of a second, each sent twice, from entry to exit."""
    product = await make_product(database, stock=10_000)
    async with UnitOfWork(database.write) as uow:
        await uow.audits.keep(AuditResult(now(), 0.1, 10, 0), [])
        await uow.commit()
    buyer = await make_user(database, credits="100000")
    headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(buyer.id))}"}
    async with httpx2.AsyncClient(base_url=address, timeout=30.0, headers=headers) as client:

        async def place() -> None:
            number = 0
            while True:
                number += 1
                for _ in range(2):
                    reply = await client.post(
                        "/v1/orders",
                        headers={"Idempotency-Key": f"order-{number}"},
                        json={"items": [{"product_id": product.id, "quantity": 1}]},
                    )
                    assert reply.status_code == 201, reply.text
                await asyncio.sleep(0.1)

        placing = asyncio.create_task(place())
        try:
            yield
        finally:
            placing.cancel()
            await asyncio.gather(placing, return_exceptions=True)


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    await asyncio.to_thread(wait_until, condition, what, seconds)


async def test_every_query_finds_its_data_and_stopped_workers_raise_the_alarm(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    port = any_free_port()
    with ExitStack() as stack:
        serve = ["-m", "services.cli", "api", "--port", str(port), "--workers", "2"]
        api = stack.enter_context(running(serve, settings, tmp_path / "api.log"))
        workers = [
            stack.enter_context(running_worker(settings, tmp_path / f"worker-{number}.log")) for number in range(2)
        ]
        await eventually(lambda: len(set(ports_in(api.said()))) == 2, "the metrics of two API processes")
        await eventually(lambda: all(ports_in(worker.said()) for worker in workers), "the workers' metrics")
        targets = {
            API: sorted(set(ports_in(api.said()))),
            WORKER: [address for worker in workers for address in ports_in(worker.said())],
        }
        assert len({*targets[API], *targets[WORKER]}) == 4, "each process has a port of its own"
        limits = {"oldest_due_timestamp_seconds) > 60": "oldest_due_timestamp_seconds) > 2"}
        prometheus = stack.enter_context(running_prometheus(targets, TOKEN, limits, tmp_path))
        async with traffic(settings, database, f"http://{LOOPBACK}:{port}"):
            await eventually(lambda: set(prometheus.targets().values()) == {"up"}, "all targets")
            for address in (*targets[API], *targets[WORKER]):
                await asyncio.to_thread(check_names, address)
            assert await asyncio.to_thread(still_missing, prometheus, 40.0) == []
            await eventually(lambda: not prometheus.firing(), "no alert while all is well")
            await asyncio.gather(*(asyncio.to_thread(worker.terminate, 20.0) for worker in workers))
            expected = {"WaybillEventsWaitTooLong", "WaybillNoWorker", "WaybillProcessDown"}
            await eventually(lambda: prometheus.firing() >= expected, "the alerts on stopped workers")
            # Not every look at the outbox is as old as the one that raised the alarm.
            await eventually(lambda: waiting(prometheus) > 0, "the events that no worker takes")


def waiting(prometheus: Prometheus) -> float:
    """How many events are ready, as the last scrapes have it."""
    return float(prometheus.query('sum(waybill_outbox_waiting_events{reason="ready"})')[0]["value"][1])


def still_missing(prometheus: Prometheus, seconds: float) -> list[str]:
    """What is missing, once nothing is or after so many seconds."""
    deadline = monotonic() + seconds
    while (found := missing(prometheus)) and monotonic() < deadline:
        sleep(0.5)
    return found


def missing(prometheus: Prometheus) -> list[str]:
    """The queries that return nothing, or no number, though they should."""
    found = []
    for query in dict.fromkeys(queries()):
        if query in EMPTY_WHEN_WELL or EMPTY_WITHOUT_A_REPLICA.search(query):
            continue
        values = [series["value"][1] for series in prometheus.query(query)]
        if not values or all(value == "NaN" for value in values):
            found.append(query)
    return found


def check_names(address: str) -> None:
    """Names and units follow Prometheus' guide, as far as promtool knows it."""
    url = f"http://{address}/metrics"
    assert httpx2.get(url).status_code == 401
    reply = httpx2.get(url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200, reply.text
    promtool("check", "metrics", given=reply.text)
