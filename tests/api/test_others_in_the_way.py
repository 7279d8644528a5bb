"""Locked rows, a moved primary and slow statements: waits are bounded, clients are told, and other requests go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from services.api import problems
from services.database import Database
from services.logs import RateLimitedLogger
from services.settings import Settings
from tests.api.client import Api, amounts, assert_problem, order_of
from tests.concurrency.ticks import rows
from tests.conftest import BOTH_PATHS
from tests.factories import make_product, make_user

pytestmark = BOTH_PATHS

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Five connections, of which one is reserved for groups; writes may use three. A short limit on lock waits."""
    return settings.model_copy(
        update={
            "database_pool_size": 5,
            "database_max_overflow": 0,
            "database_pool_timeout": 3.0,
            "database_lock_timeout": 0.5,
        }
    )


@asynccontextmanager
async def locked(database: Database, statement: str, **parameters: object) -> AsyncIterator[None]:
    """Lock these rows in another session."""
    async with database.engine.connect() as connection:
        await connection.execute(text(statement), parameters)
        yield


def account_of(user_id: int) -> str:
    return f"SELECT 1 FROM accounts WHERE user_id = {user_id} FOR UPDATE"


async def test_requests_that_need_a_locked_account_are_told_to_retry_and_others_are_served(
    api: Api, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise it would not be logged if another test has just had it logged.
    monkeypatch.setattr(problems, "outage", RateLimitedLogger(problems.logger))
    buyer, seller, _ = await api.shop()
    other = await make_user(database, credits="10")
    transfer = {"to_user_id": seller.id, "amount": "1.00"}
    async with locked(database, account_of(buyer.id)):
        stuck = [asyncio.create_task(api.post("/v1/transfers", by=buyer, json=transfer)) for _ in range(8)]
        for _ in range(100):
            if await rows(database, WAITING) == [3]:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        # Writes do not get more than their share of the pool; reads have the rest.
        assert await rows(database, WAITING) == [3]
        for _ in range(5):
            assert (await api.get("/v1/accounts/me", by=other)).status_code == 200
        for reply in await asyncio.gather(*stuck):
            assert_problem(reply, 503, "busy")
            assert reply.headers["retry-after"] == "1"
        assert (await api.post("/v1/transfers", by=other, json=transfer)).status_code == 201
    assert "lock timeout" in caplog.text
    assert (await api.post("/v1/transfers", by=buyer, json=transfer)).status_code == 201
    assert await api.credits_of(buyer) == amounts("999")


async def test_an_order_that_needs_a_locked_account_does_not_await_payment_but_is_to_be_sent_again(
    api: Api, database: Database
) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()
    async with locked(database, account_of(buyer.id)):
        reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
        assert_problem(reply, 503, "busy")
    assert await api.everything() == before
    again = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
    assert (again.status_code, again.json()["status"]) == (201, "pending")


async def test_writes_that_wait_longer_than_the_pool_allows_are_told_to_retry(api: Api, database: Database) -> None:
    buyer, seller, _ = await api.shop()
    transfer = {"to_user_id": seller.id, "amount": "1.00"}
    async with locked(database, account_of(buyer.id)):
        replies = await asyncio.gather(
            *(api.post("/v1/transfers", by=buyer, json=transfer) for _ in range(30)),
        )
    assert {reply.status_code for reply in replies} == {503}
    assert {reply.json()["code"] for reply in replies} == {"busy", "unavailable"}
    assert all("retry-after" in reply.headers for reply in replies)


async def test_a_statement_that_takes_too_long_is_answered_503_and_leaves_nothing(api: Api, database: Database) -> None:
    buyer, _, product = await api.shop()
    await rows(
        database,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$",
    )
    await rows(database, "CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()")
    before = await api.everything()
    reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
    assert_problem(reply, 503, "busy")
    assert await api.everything() == before
    await rows(database, "DROP TRIGGER slow ON orders")
    assert (await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))).status_code == 201


async def test_a_primary_that_became_read_only_is_answered_503_and_left_for_the_new_one(
    api: Api, database: Database
) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    (name,) = await rows(database, "SELECT current_database()")
    cut = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'waybill-api'"
    )
    await rows(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await rows(database, cut)
    for _ in range(3):
        reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
        assert_problem(reply, 503, "unavailable")
        assert reply.headers["retry-after"] == "1"
    # New connections find a server that takes writes; those of the pool are still read-only.
    async with database.engine.connect() as connection:
        await connection.execute(text("SET default_transaction_read_only = off"))
        await connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"))
        await connection.commit()
        await connection.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
        await connection.commit()
    again = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
    assert again.status_code == 201


@pytest.mark.parametrize("what", ["account of the buyer", "account of the seller", "stock", "order"])
async def test_a_worker_leaves_out_what_is_locked_and_processes_the_rest_immediately(
    api: Api, database: Database, what: str
) -> None:
    buyer, _, product = await api.shop()
    others = [await make_user(database, credits="100") for _ in range(4)]
    elsewhere = await make_product(database)
    stuck = await api.place(buyer, (product, 1))
    free = [await api.place(other, (elsewhere, 1)) for other in others]
    statement = {
        "account of the buyer": account_of(buyer.id),
        "account of the seller": account_of(product.seller_id),
        "stock": f"SELECT 1 FROM inventory WHERE product_id = {product.id} FOR UPDATE",
        "order": f"SELECT 1 FROM orders WHERE id = '{stuck['id']}' FOR UPDATE",
    }[what]
    async with locked(database, statement):
        await api.process()
        assert [await api.status_of(order["id"]) for order in free] == ["confirmed"] * 4
        assert await api.status_of(stuck["id"]) == "pending"
        waiting = "SELECT attempts, waits, failures IS NULL FROM outbox"
        assert await rows(database, waiting) == [(0, "retry", True)]
    await rows(database, "UPDATE outbox SET available_at = now()")
    await api.process()
    assert await api.status_of(stuck["id"]) == "confirmed"
    await api.assert_books_balance()


@pytest.mark.parametrize("failed_before", [False, True])
async def test_many_orders_that_need_what_is_locked_are_left_out_together(
    api: Api, database: Database, failed_before: bool
) -> None:
    buyer, _, product = await api.shop()
    other, elsewhere = await make_user(database, credits="100"), await make_product(database)
    for _ in range(40):
        await api.place(buyer, (product, 1))
    free = await api.place(other, (elsewhere, 1))
    if failed_before:
        # Then the batch is bisected from the start.
        await rows(database, "UPDATE outbox SET attempts = 1 WHERE position = (SELECT max(position) FROM outbox)")
    async with locked(database, account_of(product.seller_id)):
        await api.process()
        assert await api.status_of(free["id"]) == "confirmed"
        waiting = "SELECT attempts, waits, count(*) FROM outbox GROUP BY attempts, waits"
        assert await rows(database, waiting) == [(0, "retry", 40)]
