"""With tracing on, a request, its group, the batch that processes its events and each of these events have spans."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode
from sqlalchemy import text

from services import tracing
from services.app import create_app
from services.database import Database
from services.outbox.events import Trace
from services.settings import Settings
from services.tracing import traceparent_of
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, order_of
from tests.api.grouped import Gate
from tests.concurrency.ticks import Tick, processor

TRACE_ID, CALLER_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Spans:
    """The finished spans."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [one for one in self.all if one.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, (name, [one.name for one in self.all])
        return found[0]

    def below(self, parent: ReadableSpan) -> list[str]:
        """The names of its children."""
        return [one.name for one in self.all if one.parent is not None and one.parent.span_id == id_of(parent)[1]]

    def forget(self) -> None:
        self._exporter.clear()


def id_of(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def linked(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.fixture
async def spans(settings: Settings) -> AsyncIterator[Spans]:
    exporter = InMemorySpanExporter()
    async with tracing.tracing(settings, "test", exporter):
        yield Spans(exporter)


@pytest.fixture
async def api(spans: Spans, settings: Settings, database: Database) -> AsyncIterator[Api]:
    """The application, started while tracing is on."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        yield Api(app, client, settings, database)


async def test_a_request_its_group_and_the_batch_of_its_event_are_linked(api: Api, spans: Spans) -> None:
    buyer, _, product = await api.shop()
    spans.forget()
    await api.place(buyer, (product, 1))

    request, group = spans.one("POST /v1/orders"), spans.one("group of requests")
    assert request.kind is SpanKind.SERVER
    assert {**attributes(request), "waybill.request.id": ""} == {
        "http.request.method": "POST",
        "http.route": "/v1/orders",
        "http.response.status_code": 201,
        "waybill.request.id": "",
    }
    assert linked(group) == {id_of(request)}
    assert linked(request) == {id_of(group)}
    assert group.parent is None
    below = spans.below(group)
    assert "COMMIT" in below
    assert any("INSERT events" in name for name in below)
    context = request.get_span_context()
    assert context is not None
    assert await api.scalar("SELECT traceparent FROM events WHERE type = 'order.placed'") == traceparent_of(context)

    spans.forget()
    await api.process()

    batch, event = spans.one("process events"), spans.one("process order.placed")
    assert linked(batch) == {id_of(request)}
    assert batch.parent is None
    assert attributes(batch)["waybill.event.types"] == ("order.placed",)
    assert "handle order.placed" in spans.below(batch)
    assert "COMMIT" in spans.below(batch)
    assert event.parent is not None
    assert (event.parent.trace_id, event.parent.span_id) == id_of(request)
    assert linked(event) == {id_of(batch)}
    assert attributes(event)["waybill.aggregate"].startswith("order/")


async def test_requests_that_are_carried_out_together_link_to_one_group(api: Api, gate: Gate, spans: Spans) -> None:
    buyer, _, product = await api.shop()
    spans.forget()
    async with asyncio.TaskGroup() as tasks, gate.holding(3):
        for _ in range(3):
            tasks.create_task(api.place(buyer, (product, 1)))
    group = spans.one("group of requests")
    requests = spans.named("POST /v1/orders")
    assert attributes(group)["waybill.group.requests"] == 3
    assert linked(group) == {id_of(one) for one in requests}
    assert [linked(one) for one in requests] == [{id_of(group)}] * 3
    spans.forget()
    await api.process()
    assert linked(spans.one("process events")) == {id_of(one) for one in requests}
    assert len(spans.named("process order.placed")) == 3


async def test_a_request_that_goes_alone_has_its_statements_below_it(api: Api, spans: Spans) -> None:
    buyer, _, product = await api.shop()
    api.app.state.waybill.groups.are_open = False
    spans.forget()
    await api.place(buyer, (product, 1))
    below = spans.below(spans.one("POST /v1/orders"))
    assert "COMMIT" in below
    assert any("INSERT orders" in name for name in below)


async def test_a_request_continues_the_trace_that_it_is_part_of(api: Api, spans: Spans) -> None:
    await api.get("/v1/products", headers={"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01"})
    request = spans.one("GET /v1/products")
    assert id_of(request)[0] == int(TRACE_ID, 16)
    assert request.parent is not None
    assert request.parent.span_id == int(CALLER_ID, 16)


async def test_what_is_not_sampled_is_not_recorded_anywhere(api: Api, spans: Spans) -> None:
    buyer, _, product = await api.shop()
    spans.forget()
    reply = await api.post(
        "/v1/orders",
        by=buyer,
        json=order_of((product, 1)),
        headers={"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-00"},
    )
    assert reply.status_code == 201
    await api.process()
    assert [one.name for one in spans.all if one.name != "ring the doorbell"] == []
    assert str(await api.scalar("SELECT traceparent FROM events WHERE type = 'order.placed'")).startswith(
        f"00-{TRACE_ID}-"
    )


async def test_probes_and_looks_that_find_nothing_make_no_spans(api: Api, spans: Spans) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await api.get(path)
    await api.process()
    assert [one.name for one in spans.all] == []


async def test_spans_contain_nothing_that_a_client_sent(api: Api, spans: Spans) -> None:
    buyer, _, product = await api.shop()
    secret = "canary"
    spans.forget()
    sent: dict[str, Any] = {"headers": {"User-Agent": secret, "X-Forwarded-For": secret, "Cookie": secret}}
    await api.post("/v1/orders", by=buyer, json=order_of((product, 1), reference=secret), **sent)
    await api.get(f"/v1/products?q={secret}", **sent)
    await api.get(f"/v1/orders/{secret}", by=buyer, **sent)
    await api.get(f"/{secret}", **sent)
    await api.post(
        "/v1/users", json={"email": f"{secret}@example.com", "password": secret, "full_name": secret}, **sent
    )
    await api.sign_in(f"{secret}@example.com", secret)
    await api.process()
    assert len(spans.named("GET unmatched")) == 1
    assert len(spans.all) > 20
    assert [one.to_json() for one in spans.all if secret in one.to_json()] == []


async def test_an_event_that_fails_has_one_span_in_its_trace_that_says_so(api: Api, spans: Spans) -> None:
    async def fails(*_: object) -> None:
        raise ValueError("canary")

    with tracing.span("the request", is_root=True) as root:
        trace = Trace("r1", traceparent_of(root.get_span_context()))
    async with UnitOfWork(api.database.write, trace=trace) as uow:
        uow.record(Tick(name="a"))
        await uow.commit()
    engine = processor(api.database, fails)
    await engine.run_once()
    event = spans.one("process test.tick")
    assert event.status.status_code is StatusCode.ERROR
    assert attributes(event)["error.type"] == "ValueError"
    async with api.database.engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET available_at = now()"))
    spans.forget()
    await engine.run_once()
    assert spans.named("process test.tick") == []
    context = root.get_span_context()
    assert (context.trace_id, context.span_id) in linked(spans.named("process events")[-1])
    assert "canary" not in "".join(one.to_json() for one in spans.all)


async def test_without_tracing_no_span_is_made() -> None:
    assert not tracing.is_on()
    one, other = tracing.span("a"), tracing.statement("SELECT 1")
    assert one is other
    with one as span:
        assert span is INVALID_SPAN
    assert tracing.links_to([f"00-{TRACE_ID}-{CALLER_ID}-01"]) == []


def test_a_statement_is_named_after_what_it_writes() -> None:
    writes = "WITH a AS (INSERT INTO events (id) SELECT 1), b AS (DELETE FROM outbox) SELECT 1"
    assert tracing._summary(writes) == "INSERT events, DELETE outbox"
    assert tracing._summary("SELECT id FROM orders FOR UPDATE SKIP LOCKED") == "SELECT orders"
    assert tracing._summary("COMMIT") == "COMMIT"
    assert tracing._summary("") == "statement"
