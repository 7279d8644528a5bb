"""Which requests take turns on the event loop, and that a request leaves nothing to the garbage collector."""

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Scope

from benchmarks.sessions import session_of
from services.api.state import ApiState
from tests.api.client import FRESH, Api, order_of
from tests.factories import PASSWORD, make_product, make_user

PROMPTLY = 20.0


@asynccontextmanager
async def nobody_gets_a_turn(api: Api) -> AsyncIterator[None]:
    """Inside the block, someone has the turn and keeps it."""
    state: ApiState = api.app.state.waybill
    assert state.run_queue.take(0) is None
    try:
        yield
    finally:
        state.run_queue.pass_on(perf_counter())


async def assert_waits(api: Api, reply: "asyncio.Task[httpx2.Response]") -> None:
    async with asyncio.timeout(PROMPTLY):
        while not api.app.state.waybill.run_queue._waiting:
            assert not reply.done()
            await asyncio.sleep(0.005)


async def test_orders_and_attempts_to_sign_in_do_not_wait_for_a_turn(api: Api) -> None:
    product = await make_product(api.database)
    buyer = await make_user(api.database, credits="100")
    form = {"grant_type": "password", "username": buyer.email, "password": PASSWORD}
    async with asyncio.timeout(PROMPTLY), nobody_gets_a_turn(api):
        await api.place(buyer, (product, 1))
        bad_order = {**order_of((product, 1)), "unknown": 1}
        assert (await api.post("/v1/orders", by=buyer, json=bad_order)).status_code == 422
        transfer = {"to_user_id": (await make_user(api.database)).id, "amount": "1"}
        assert (await api.post("/v1/transfers", by=buyer, json=transfer)).status_code == 201
        assert (await api.client.post("/v1/token", data=form)).status_code == 200
        assert (await api.get("/healthz")).status_code == 200


@pytest.mark.parametrize("what", ["search", "large order", "order with zeros", "write"])
async def test_all_others_wait_for_theirs(api: Api, what: str) -> None:
    product = await make_product(api.database)
    buyer = await make_user(api.database, credits="100")
    order = order_of((product, 1))
    wanted: dict[str, Any] = {
        "search": ("GET", "/v1/products?q=lamp", {}),
        "large order": ("POST", "/v1/orders", {"content": json.dumps(order) + " " * 20_000}),
        "order with zeros": ("POST", "/v1/orders", {"content": json.dumps(order) + " " * 20_000}),
        "write": ("PATCH", "/v1/users/me", {"json": {"full_name": "Another Name"}, "version": buyer.version}),
    }
    expected = {"search": 200, "large order": 201, "order with zeros": 201, "write": 200}
    method, path, more = wanted[what]
    if "content" in more:
        more["headers"] = {"Content-Type": "application/json"}
    if what == "order with zeros":
        more["headers"]["Content-Length"] = f"{len(more['content']):030d}"
    async with nobody_gets_a_turn(api):
        reply = asyncio.create_task(api.request(method, path, by=buyer, key=FRESH, **more))
        await assert_waits(api, reply)
        assert "waybill_turns_waiting 1.0" in (await api.get("/metrics")).text
    async with asyncio.timeout(PROMPTLY):
        assert (await reply).status_code == expected[what]
    assert "waybill_turns_waiting 0.0" in (await api.get("/metrics")).text


class Cycle:
    """A request as the server makes it: its methods are what the application receives and sends with."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.scope = scope
        self.body = body
        self.status = 0

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        # Not one for a group: asyncio's own loop, unlike the API's, keeps the contexts of timers that were cancelled.
        ("POST", "/v1/orders", '{"items": []}', 422),
        ("GET", "/v1/orders", "", 200),
        ("GET", "/v1/users/me", "", 200),
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/healthz", "", 200),
    ],
)
async def test_a_request_leaves_no_cycle_of_objects(api: Api, method: str, path: str, body: str, status: int) -> None:
    buyer = await make_user(api.database)

    async def send() -> "weakref.ref[Cycle]":
        fields = {
            "authorization": f"Bearer {api.tokens.make(session_of(buyer.id))}",
            "idempotency-key": "cycle",
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": ("waybill", 80),
            "state": {},
        }
        cycle = Cycle(scope, body.encode())
        await api.app(scope, cycle.receive, cycle.send)
        assert cycle.status == status
        return weakref.ref(cycle)

    gc.collect()
    gc.disable()
    try:
        # What is made for the first request, such as a connection, may remember it.
        await send()
        sent = await send()
        for _ in range(50):
            await asyncio.sleep(0.005)
        assert sent() is None
    finally:
        gc.enable()
