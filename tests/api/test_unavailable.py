"""A database that is up but refuses connections: 503 and Retry-After, not a 500."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import make_url

from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.conftest import Administrator
from tests.factories import make_user

NAMES = "waybill-api%"


@contextmanager
def refusing_connections(administrator: Administrator, settings: Settings) -> Iterator[None]:
    """The database accepts no new connections, and the API has lost those it had."""
    name = make_url(settings.database_url).database
    assert name is not None
    alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    administrator.execute(alter.format(sql.Identifier(name), sql.SQL("false")))
    try:
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name LIKE %s",
            (name, NAMES),
        )
        yield
    finally:
        administrator.execute(alter.format(sql.Identifier(name), sql.SQL("true")))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/orders", None),
        ("GET", "/v1/products", None),
        ("GET", "/v1/operations/books", None),
        ("PATCH", "/v1/users/me", {"full_name": "Other"}),
        ("POST", "/v1/users", {"email": "new@example.com", "full_name": "New", "password": "long enough"}),
    ],
)
async def test_a_database_that_refuses_connections_is_reported_as_unavailable(
    api: Api, administrator: Administrator, method: str, path: str, body: Any
) -> None:
    caller: User = await make_user(api.database)
    before = await api.everything()

    with refusing_connections(administrator, api.settings):
        reply = await api.request(method, path, by=caller, version=1, json=body)

    assert_problem(reply, 503, "unavailable")
    assert reply.headers["retry-after"] == "1"
    assert "not currently accepting" not in reply.text, "what the server says is for the log"
    assert await api.everything() == before


async def test_a_database_that_is_not_there_any_more_is_reported_as_unavailable(
    api: Api, administrator: Administrator
) -> None:
    caller: User = await make_user(api.database)
    name = make_url(api.settings.database_url).database
    assert name is not None
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with refusing_connections(administrator, api.settings):
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        administrator.execute(rename.format(sql.Identifier(name), sql.Identifier(f"{name}_away")))
        try:
            reply = await api.get("/v1/orders", by=caller)
            ready = await api.get("/readyz")
        finally:
            administrator.execute(rename.format(sql.Identifier(f"{name}_away"), sql.Identifier(name)))
    assert_problem(reply, 503, "unavailable")
    assert (ready.status_code, ready.json()["database"]) == (503, "unreachable")


async def test_an_order_sent_again_after_such_an_outage_is_placed_once(api: Api, administrator: Administrator) -> None:
    buyer, _, product = await api.shop()
    with refusing_connections(administrator, api.settings):
        refused = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
        signing_in = await api.sign_in(buyer.email, "x")
    assert_problem(refused, 503, "unavailable")
    assert refused.headers["retry-after"] == "1"
    assert_problem(signing_in, 503, "unavailable")

    for _ in range(2):
        again = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
        assert again.status_code == 201
    assert await api.scalar("SELECT count(*) FROM orders") == 1
