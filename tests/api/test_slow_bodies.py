"""Requests that wait for a slow client or a slow hash hold no connection to the database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.sessions import session_of
from services.settings import Settings
from services.users.models import User
from services.users.passwords import Passwords
from tests.api.client import Api, http_scope
from tests.factories import CONFIRMED, PASSWORD, make_operator, make_product, make_user


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """One connection: a request that holds it while it waits stops all others."""
    update = {"database_pool_size": 1, "database_max_overflow": 0, "database_pool_timeout": 2.0}
    return settings.model_copy(update=update)


class SlowClient:
    """Announces a body and sends it when it is told to."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.waited_for = asyncio.Event()
        self.sends = asyncio.Event()
        self.status: int | None = None
        self.said = b""

    async def receive(self) -> dict[str, Any]:
        self.waited_for.set()
        await self.sends.wait()
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.said += message.get("body", b"")


@asynccontextmanager
async def slowly(api: Api, path: str, by: User, body: bytes = b'{"reason": "slow"}') -> AsyncIterator[SlowClient]:
    """A POST whose body is awaited inside the block, and comes at its end."""
    headers = {
        "authorization": f"Bearer {api.tokens.make(session_of(by.id))}",
        "idempotency-key": str(uuid4()),
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    client = SlowClient(body)
    request = asyncio.create_task(api.app(http_scope("POST", path, headers), client.receive, client.send))
    try:
        async with asyncio.timeout(10):
            await client.waited_for.wait()
        yield client
        client.sends.set()
        async with asyncio.timeout(10):
            await request
    finally:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


async def assert_connection_is_free(api: Api, by: User) -> None:
    """No transaction is open, and other requests are served with the only connection."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND state LIKE 'idle in transact%'"
    assert await api.scalar(f"{waiting} AND datname = current_database()", name="waybill-api") == 0
    async with asyncio.timeout(10):
        assert (await api.get("/v1/orders", by=by)).status_code == 200
        registered = {"email": "new@example.com", "full_name": "New", "password": PASSWORD}
        assert (await api.post("/v1/users", key=None, json=registered)).status_code == 201


async def order_to_pay(api: Api) -> tuple[str, User]:
    buyer, _, product = await api.shop(credits="0")
    placed = await api.place(buyer, (product, 1))
    topped_up = {"user_id": buyer.id, "amount": "100.00"}
    assert (await api.post("/v1/top-ups", by=await make_operator(api.database), json=topped_up)).status_code == 201
    return f"/v1/orders/{placed['id']}/pay", buyer


async def order_to_cancel(api: Api) -> tuple[str, User]:
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    return f"/v1/orders/{placed['id']}/cancel", buyer


async def order_to_fulfil(api: Api) -> tuple[str, User]:
    buyer, seller, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    await api.process()
    return f"/v1/orders/{placed['id']}/fulfil", seller


async def user_to_restore(api: Api) -> tuple[str, User]:
    user = await make_user(api.database)
    assert (await api.delete("/v1/users/me", by=user, json=CONFIRMED)).status_code == 204
    return f"/v1/users/{user.id}/restore", await make_operator(api.database)


@pytest.mark.parametrize("prepare", [order_to_pay, order_to_cancel, order_to_fulfil, user_to_restore])
async def test_a_late_body_holds_no_connection_and_is_served_when_it_arrives(
    api: Api, prepare: Callable[[Api], Awaitable[tuple[str, User]]]
) -> None:
    path, by = await prepare(api)
    async with slowly(api, path, by) as client:
        await assert_connection_is_free(api, by)
    assert client.status == 200, client.said


async def test_many_late_bodies_do_not_hold_up_other_requests(api: Api) -> None:
    path, seller = await order_to_fulfil(api)
    async with slowly(api, path, seller), slowly(api, path, seller), slowly(api, path, seller):
        await assert_connection_is_free(api, seller)
    order_id = path.split("/")[3]
    assert await api.status_of(order_id) == "fulfilled"


async def test_a_new_password_is_hashed_outside_of_the_transaction(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await make_user(api.database)
    await make_product(api.database, seller=user)
    hashing, go_on = asyncio.Event(), asyncio.Event()
    plain_hash = Passwords.hash

    async def slow_hash(passwords: Passwords, password: str) -> str:
        if password == "another one!":
            hashing.set()
            await go_on.wait()
        return await plain_hash(passwords, password)

    monkeypatch.setattr(Passwords, "hash", slow_hash)
    changes = {"full_name": "Renamed", "password": "another one!", **CONFIRMED}
    changing = asyncio.create_task(api.patch("/v1/users/me", by=user, version=1, json=changes))
    try:
        async with asyncio.timeout(10):
            await hashing.wait()
        await assert_connection_is_free(api, user)
    finally:
        go_on.set()
        reply = await changing

    assert (reply.status_code, reply.json()["full_name"], reply.headers["etag"]) == (200, "Renamed", '"2"')
    for password, status in ((PASSWORD, 401), ("another one!", 200)):
        assert (await api.sign_in(user.email, password)).status_code == status


async def test_an_edit_that_overtakes_the_hash_of_a_password_is_not_lost(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    hashing, go_on = asyncio.Event(), asyncio.Event()
    plain_hash = Passwords.hash

    async def slow_hash(passwords: Passwords, password: str) -> str:
        hashing.set()
        await go_on.wait()
        return await plain_hash(passwords, password)

    monkeypatch.setattr(Passwords, "hash", slow_hash)
    changes = {"password": "another one!", **CONFIRMED}
    changing = asyncio.create_task(api.patch("/v1/users/me", by=user, version=1, json=changes))
    try:
        async with asyncio.timeout(10):
            await hashing.wait()
            overtaking = await api.patch("/v1/users/me", by=user, version=1, json={"full_name": "First"})
    finally:
        go_on.set()
        reply = await changing

    assert overtaking.status_code == 200
    assert reply.status_code == 412
    assert (await api.get("/v1/users/me", by=user)).json()["full_name"] == "First"
