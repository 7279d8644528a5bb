"""What Prometheus reads, and who may read it."""

import logging
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from services.app import create_app
from services.audit.schemas import AuditResult, Difference, DifferenceKind
from services.fields import now
from services.settings import Environment, Settings
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, assert_problem, order_of
from tests.api.test_unavailable import refusing_connections
from tests.conftest import BOTH_PATHS, Administrator

TOKEN = "a-token-for-the-scraper"


async def scrape(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    reply = await api.get("/metrics")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return samples_of(reply.text)


def waiting(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> dict[tuple[str, str], float]:
    """Waiting events by type and reason."""
    return {
        (dict(labels)["type"], dict(labels)["reason"]): value
        for (name, labels), value in samples.items()
        if name == "waybill_outbox_waiting_events" and value
    }


def samples_of(scraped: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(scraped)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_the_database_gauges_show_what_waits_and_what_the_last_audit_found(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.waiting.KEPT", 0.0)
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    before = await scrape(api)
    assert before["waybill_database_up", ()] == 1
    assert waiting(before) == {("order.placed", "ready"): 1}
    assert abs(before["waybill_outbox_oldest_due_timestamp_seconds", ()] - now().timestamp()) < 60
    assert before["waybill_dead_letters", ()] == 0
    assert before["waybill_sweep_failures", ()] == 0
    assert not any(name.startswith("waybill_audit") for name, _ in before), "there was none"

    async with UnitOfWork(api.database.write) as uow:
        for minutes, differences in ((90, 5), (30, 3)):
            at = now() - timedelta(minutes=minutes)
            unbalanced = Difference(DifferenceKind.ledger_sum, {}, "0", "-2.50")
            await uow.audits.keep(AuditResult(at, 2.5, 1000 + minutes, differences), [unbalanced])
        good = now() - timedelta(minutes=120)
        await uow.audits.keep(AuditResult(good, 2.5, 1000, 0), [])
        await uow.commit()
    await api.process()

    after = await scrape(api)
    assert waiting(after) == {}
    assert after["waybill_outbox_waiting_events", (("reason", "ready"), ("type", "order.placed"))] == 0
    assert ("waybill_outbox_oldest_due_timestamp_seconds", ()) not in after, "nothing is due"
    assert after["waybill_audit_last_good_timestamp_seconds", ()] == pytest.approx(good.timestamp(), abs=0.01)
    assert after["waybill_audit_differences", ()] == 3
    assert after["waybill_audit_duration_seconds", ()] == 2.5
    assert after["waybill_audit_rows_checked", ()] == 1030
    assert 1800 <= now().timestamp() - after["waybill_audit_last_timestamp_seconds", ()] < 1860
    assert after["waybill_ledger_imbalance_credits", ()] == -2.5


async def test_requests_are_counted_and_timed_by_route_and_class_of_status(api: Api) -> None:
    buyer, _, product = await api.shop()
    order = await api.place(buyer, (product, 1))
    for _ in range(3):
        assert (await api.get(f"/v1/orders/{order['id']}", by=buyer)).status_code == 200
    assert (await api.get("/v1/orders/nonsense", by=buyer)).status_code == 422
    for path in ("/v1/a", "/v1/b", "/c"):
        assert (await api.get(path)).status_code == 404
    await api.request("BREW", "/v1/orders")

    samples = await scrape(api)

    def count(method: str, route: str, status: str) -> float:
        labels = (("method", method), ("route", route), ("status", status))
        return samples["waybill_http_request_duration_seconds_count", labels]

    assert count("POST", "/v1/orders", "2xx") == 1
    assert count("GET", "/v1/orders/{order_id}", "2xx") == 3
    assert count("GET", "/v1/orders/{order_id}", "4xx") == 1
    assert count("GET", "unmatched", "4xx") == 3
    assert count("other", "/v1/orders", "4xx") == 1
    took = (
        "waybill_http_request_duration_seconds_sum",
        (("method", "POST"), ("route", "/v1/orders"), ("status", "2xx")),
    )
    assert 0 < samples[took] < 60
    assert not any(order["id"] in str(labels) for _, labels in samples)


async def test_a_request_that_fails_counts_as_a_5xx(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("services.operations.service.backlog", fail)
    operator = (await api.shop())[0]
    await api.client.get("/v1/operations/backlog")
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE users SET role = 'operator'")
    logging.disable()
    try:
        assert (await api.get("/v1/operations/backlog", by=operator)).status_code == 500
    finally:
        logging.disable(logging.NOTSET)
    samples = await scrape(api)
    labels = (("method", "GET"), ("route", "/v1/operations/backlog"), ("status", "5xx"))
    assert samples["waybill_http_request_duration_seconds_count", labels] == 1


async def test_without_the_database_the_process_still_serves_its_own_metrics(
    api: Api, administrator: Administrator
) -> None:
    with refusing_connections(administrator, api.settings):
        samples = await scrape(api)
    assert samples["waybill_database_up", ()] == 0
    assert ("waybill_outbox_waiting_events", ()) not in samples
    assert samples["process_resident_memory_bytes", ()] > 0
    assert (await scrape(api))["waybill_database_up", ()] == 1


async def read(settings: Settings, authorization: str | None, path: str = "/metrics") -> httpx2.Response:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client,
    ):
        headers: dict[bytes, bytes] = {}
        if authorization is not None:
            headers[b"Authorization"] = authorization.encode("latin-1")
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("environment", list(Environment))
@pytest.mark.parametrize("given", [None, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é"])
async def test_if_a_token_is_set_only_its_holder_can_read_the_metrics(
    settings: Settings, environment: Environment, given: str | None
) -> None:
    guarded = settings.model_copy(update={"environment": environment, "metrics_token": SecretStr(TOKEN)})
    reply = await read(guarded, given)
    assert_problem(reply, 401, "unauthenticated")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in reply.text
    assert (await read(guarded, f"Bearer {TOKEN}")).status_code == 200


@pytest.mark.parametrize("given", [None, "Bearer x"])
async def test_outside_development_the_path_does_not_exist_without_a_token(
    settings: Settings, given: str | None
) -> None:
    closed = settings.model_copy(update={"environment": Environment.production})
    assert_problem(await read(closed, given), 404, "not_found")


async def test_autoscalers_read_how_many_events_workers_can_process_now(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    idle = await api.get("/internal/scaling")
    assert idle.json() == {"total": 0, "events": {"order.placed": 0}}
    for _ in range(3):
        await api.place(buyer, (product, 1))
    assert (await api.get("/internal/scaling")).json()["total"] == 0, "for five seconds, nothing is read again"
    monkeypatch.setattr("services.api.waiting.KEPT", 0.0)
    assert (await api.get("/internal/scaling")).json() == {"total": 3, "events": {"order.placed": 3}}
    await api.process()
    assert (await api.get("/internal/scaling")).json()["total"] == 0


async def test_the_number_for_autoscalers_needs_the_token_of_the_metrics(settings: Settings) -> None:
    guarded = settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    assert_problem(await read(guarded, None, "/internal/scaling"), 401, "unauthenticated")
    assert_problem(await read(guarded, "Bearer x", "/internal/scaling"), 401, "unauthenticated")
    assert (await read(guarded, f"Bearer {TOKEN}", "/internal/scaling")).status_code == 200
    closed = settings.model_copy(update={"environment": Environment.production})
    assert_problem(await read(closed, None, "/internal/scaling"), 404, "not_found")


async def test_without_the_database_autoscalers_get_a_503(api: Api, administrator: Administrator) -> None:
    with refusing_connections(administrator, api.settings):
        assert_problem(await api.get("/internal/scaling"), 503, "unavailable")


@BOTH_PATHS
async def test_what_becomes_of_idempotency_keys_is_counted(api: Api) -> None:
    buyer, _, product = await api.shop()
    before = await scrape(api)
    for quantity, status in ((1, 201), (1, 201), (2, 422)):
        reply = await api.post("/v1/orders", by=buyer, key="one", json=order_of((product, quantity)))
        assert reply.status_code == status, reply.text
    after = await scrape(api)

    def more(outcome: str) -> float:
        sample = ("waybill_idempotency_outcomes_total", (("outcome", outcome),))
        return after[sample] - before[sample]

    assert {name: more(name) for name in ("stored", "replayed", "reused", "in_flight", "forbidden")} == {
        "stored": 1,
        "replayed": 1,
        "reused": 1,
        "in_flight": 0,
        "forbidden": 0,
    }
