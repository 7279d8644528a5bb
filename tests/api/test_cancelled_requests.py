"""A request is cancelled at each of its awaits: connections are clean or dropped, and answered writes are kept."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from benchmarks.sessions import session_of
from services.database import Database
from services.settings import Settings
from services.shielding import settled
from services.users.models import User
from tests.api.client import Api, http_scope, order_of
from tests.cancelling import MANNERS, Manner

OPEN = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'waybill-api' AND state <> 'idle'
""")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # The next request gets the connection that this one had.
    return settings.model_copy(update={"database_pool_size": 1, "database_max_overflow": 0})


class Reply:
    """What the application sent."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = b""
        self.whole = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")
            self.whole = not message.get("more_body", False)


async def send(api: Api, reply: Reply, method: str, path: str, by: User, body: Any = None, key: str = "") -> None:
    """Send a request directly to the application: the awaits of a client in between would count, too."""
    headers = {"authorization": f"Bearer {api.tokens.make(session_of(by.id))}", "content-type": "application/json"}
    if key:
        headers["idempotency-key"] = key
    # As the client of the other tests writes it: a key belongs to the bytes of its body.
    sent = json.dumps(body, separators=(",", ":")).encode() if body is not None else b""
    messages = [{"type": "http.request", "body": sent, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    await api.app(http_scope(method, path, headers), receive, reply)


async def assert_clean(api: Api, looking: Database) -> None:
    """No connection is in use, none has a transaction open, and other connections see what the next request writes."""
    await settled()
    pool = api.app.state.waybill.database.engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0
    # The server needs a moment to see that a connection was closed.
    async with asyncio.timeout(10), looking.engine.connect() as connection:
        while (await connection.execute(OPEN)).scalar_one() > 0:
            await connection.rollback()
            await asyncio.sleep(0.02)


async def count(looking: Database, table: str) -> int:
    async with looking.engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


@pytest.mark.parametrize(("in_groups", "least"), [(True, 1), (False, 8)], ids=["in a group", "alone"])
@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS.keys())
async def test_an_order_cancelled_at_any_await_is_placed_once_or_not_at_all(
    api: Api, looking: Database, manner: Manner, in_groups: bool, least: int
) -> None:
    groups = api.app.state.waybill.groups
    groups.are_open = in_groups
    buyer, _, product = await api.shop(credits="100000")
    body = order_of((product, 1))
    fatal, awaits, placed = 0, 1, await count(looking, "orders")
    while fatal < awaits:
        fatal += 1
        key, reply = f"key-{fatal}", Reply()
        awaits = await manner(send(api, reply, "POST", "/v1/orders", buyer, body, key), fatal)
        for committer in groups._committers.values():
            await committer._idle.wait()
        await assert_clean(api, looking)
        before = await count(looking, "orders")
        assert before - placed <= 1, fatal
        assert reply.whole, fatal
        if reply.status == 201:
            assert before - placed == 1, fatal
        else:
            assert (reply.status, json.loads(reply.body)["code"]) == (503, "outcome_unknown"), fatal
        again = await api.post("/v1/orders", by=buyer, key=key, json=body)
        assert again.status_code == 201, fatal
        assert ("idempotency-replayed" in again.headers) == (before > placed), fatal
        placed += 1
        assert await count(looking, "orders") == placed, fatal
    assert awaits >= least, "fewer awaits than placing an order has prove less than they seem to"
    await api.assert_books_balance()


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS.keys())
@pytest.mark.parametrize("path", ["/v1/accounts/me/statement.csv", "/v1/orders", "/v1/operations/backlog"])
async def test_a_read_cancelled_at_any_await_leaves_the_connection_to_the_next_write(
    api: Api, looking: Database, manner: Manner, path: str
) -> None:
    buyer, seller, product = await api.shop(credits="100000")
    transfers = {"mode": "independent", "transfers": [{"to_user_id": seller.id, "amount": "0.01"}] * 500}
    for _ in range(5):
        assert (await api.post("/v1/transfers/batch", by=buyer, json=transfers)).status_code < 300
    placed = await count(looking, "orders")
    fatal, awaits = 0, 1
    while fatal < awaits:
        fatal += 1
        awaits = await manner(send(api, Reply(), "GET", path, buyer), fatal)
        await assert_clean(api, looking)
        assert (await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))).status_code == 201
        placed += 1
        assert await count(looking, "orders") == placed, fatal
    assert awaits >= 3


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS.keys())
async def test_a_request_cancelled_while_it_connects_leaves_no_connection_behind(
    api: Api, looking: Database, manner: Manner
) -> None:
    buyer, _, _ = await api.shop()
    fatal, awaits = 0, 1
    while fatal < awaits:
        fatal += 1
        await api.app.state.waybill.database.engine.dispose()
        awaits = await manner(send(api, Reply(), "GET", "/v1/accounts/me", buyer), fatal)
        await assert_clean(api, looking)
        assert (await api.get("/v1/accounts/me", by=buyer)).status_code == 200, fatal
    assert awaits >= 10, "connecting has more awaits than using a connection"
