"""Reports with real workers and servers: killed in a batch, and an analytics database that is away or silent."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest

from services.analytics import Analytics
from services.app import create_app
from services.database import Database
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.api.client import Api, assert_problem
from tests.api.test_metrics import samples_of
from tests.concurrency.ticks import rows
from tests.factories import make_operator
from tests.faults.test_jobs import until
from tests.processes import running, running_worker
from tests.proxy import Proxy
from tests.reporting import content
from tests.reporting import rows as rows_of

CONFIRMED = "SELECT orders, pieces, amount FROM report_days WHERE seller_id = 0 AND type = 'order.confirmed'"
PATH = "/v1/reports/sales"


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    return settings.model_copy(update={"analytics_url": analytics_url})


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    async for one in api_of(settings, database):
        yield one


async def api_of(settings: Settings, database: Database) -> AsyncIterator[Api]:
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test", timeout=60) as client,
    ):
        yield Api(app, client, settings, database)


async def trade(api: Api, orders: int = 3) -> None:
    """Orders of two pieces that are confirmed."""
    buyer, _, product = await api.shop(price="2.50")
    for _ in range(orders):
        await api.place(buyer, (product, 2))
    async with asyncio.timeout(20):
        # A running worker may be the one that processes them.
        while await api.scalar("SELECT count(*) FROM orders WHERE status = 'pending'"):
            await api.process()
            await asyncio.sleep(0.02)


async def until_counted(analytics: Analytics, expected: list[Any], seconds: float = 40.0) -> None:
    deadline = monotonic() + seconds
    while (found := await rows_of(analytics.engine, CONFIRMED)) != expected:
        assert monotonic() < deadline, f"{found} instead of {expected}"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("when", ["read", "effects", "stored"])
async def test_what_a_killed_worker_was_counting_counts_once(
    api: Api, analytics: Analytics, settings: Settings, tmp_path: Path, when: str
) -> None:
    await rows(api.database, "CREATE TABLE beginnings (pid integer)")
    await trade(api)
    with running(["-m", "tests.faults.reports_worker", when], settings, tmp_path / "one.log") as first:
        await until(api.database, "SELECT pid FROM beginnings", first.process.pid, first)
        first.kill()
    assert bool((await content(analytics))["report_days"]) == (when == "stored")
    await trade(api, 1)
    with running_worker(settings, tmp_path / "two.log"):
        await until_counted(analytics, [(4, 8, 20)])
        await until(api.database, "SELECT count(*) FROM log_sinks WHERE stored = reads", 1, first)
        await until_counted(analytics, [(4, 8, 20)])


async def test_while_the_analytics_database_is_away_everything_but_reports_works(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    away = settings.model_copy(update={"analytics_url": f"postgresql://waybill@127.0.0.1:{any_free_port()}/none"})
    async for api in api_of(away, database):
        operator = await make_operator(database)
        reply = await api.get(PATH, by=operator)
        assert "analytics database" in assert_problem(reply, 503, "reports_unavailable")["detail"]
        assert reply.headers["Retry-After"] == "1"
        assert_problem(await api.get(f"{PATH}.csv", by=operator), 503, "reports_unavailable")
        assert (await api.get("/readyz")).status_code == 200
        with running_worker(away, tmp_path / "worker.log") as worker:
            buyer, _, product = await api.shop()
            order = await api.place(buyer, (product, 1))
            await until(database, f"SELECT status FROM orders WHERE id = '{order['id']}'", "confirmed", worker)
            await until(database, "SELECT failed_in_a_row > 0 FROM log_consumers WHERE name = 'reports'", True, worker)
            (error,) = await rows(database, "SELECT error FROM log_consumers WHERE name = 'reports'")
            assert "cannot be used: Connection refused" in error
            assert await rows(database, "SELECT count(*) FROM log_consumers WHERE name = 'orders-by-day'") == [1]
        scraped = samples_of((await api.get("/metrics")).text)
        of = (("consumer", "reports"),)
        assert scraped["waybill_log_consumer_unread_events", of] >= 2
        assert scraped["waybill_log_consumer_lag_seconds", of] > 0
        assert scraped["waybill_log_consumer_failures", of] >= 1


async def test_a_silent_analytics_database_delays_nothing_else_and_then_catches_up(
    settings: Settings, database: Database, analytics: Analytics, tmp_path: Path
) -> None:
    assert settings.analytics_url is not None
    async with Proxy(settings.analytics_url) as proxy:
        distant = settings.model_copy(
            update={"analytics_url": proxy.url, "database_pool_timeout": 5.0, "database_statement_timeout": 3.0}
        )
        async for api in api_of(distant, database):
            operator = await make_operator(database)
            assert (await api.get(PATH, by=operator)).status_code == 200
            with running_worker(distant, tmp_path / "worker.log") as worker:
                await trade(api, 1)
                await until_counted(analytics, [(1, 2, 5)])
                proxy.silent = True
                began = monotonic()
                # More than the primary has connections for.
                asked = [asyncio.create_task(api.get(PATH, by=operator)) for _ in range(30)]
                await asyncio.sleep(0.5)
                assert not any(one.done() for one in asked)
                buyer, _, product = await api.shop()
                placed = monotonic()
                order = await api.place(buyer, (product, 1))
                assert monotonic() - placed < 2
                for reply in await asyncio.gather(*asked):
                    assert_problem(reply, 503, "reports_unavailable")
                assert monotonic() - began < 20
                await until(database, f"SELECT status FROM orders WHERE id = '{order['id']}'", "confirmed", worker)
                failing = "SELECT failed_in_a_row > 0 FROM log_consumers WHERE name = 'reports'"
                await until(database, failing, True, worker)
                assert (await api.get("/readyz")).status_code == 200
                proxy.silent = False
                await until_counted(analytics, [(2, 3, 15)], 60)
                await until(database, failing, False, worker)
                assert (await api.get(PATH, by=operator)).json()["data"][0]["orders"] == 2


async def test_off_means_off(settings: Settings, database: Database, tmp_path: Path) -> None:
    off = settings.model_copy(update={"analytics_url": None})
    async for api in api_of(off, database):
        operator = await make_operator(database)
        for name in ("sales", "sales.csv", "statuses", "confirmation-times"):
            refused = assert_problem(await api.get(f"/v1/reports/{name}", by=operator), 404, "reports_off")
            assert "WAYBILL_ANALYTICS_URL" in refused["detail"]
        assert_problem(await api.get(PATH), 401, "unauthenticated")
        assert (await api.get("/readyz")).status_code == 200
        with running_worker(off, tmp_path / "worker.log") as worker:
            buyer, _, product = await api.shop()
            order = await api.place(buyer, (product, 1))
            await until(database, f"SELECT status FROM orders WHERE id = '{order['id']}'", "confirmed", worker)
            await until(database, "SELECT name FROM log_consumers", "orders-by-day", worker)
            assert await rows(database, "SELECT name FROM log_consumers") == ["orders-by-day"]
            applications = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE '%analytics%'"
            assert await rows(database, applications) == []
        assert "analytics" not in (await api.get("/metrics")).text
