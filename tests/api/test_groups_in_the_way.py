"""A row that another transaction has locked holds up the requests that need it, and not their group."""

import asyncio
from typing import Any

import httpx2
import pytest
from fastapi import Request

from services.api import groups
from services.database import Database
from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, order_of
from tests.api.test_others_in_the_way import locked
from tests.concurrency.groups.watch import Watch, queue, together
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user

LOCK_TIMEOUT = 20.0
PROMPTLY = 6.0
"""Seconds within which others are answered: well below the time for which one may wait for a lock."""
NEIGHBOURS = 12
SIZES = "SELECT count(*) FROM idempotency_keys GROUP BY xmin::text ORDER BY 1 DESC"
"""How many replies each transaction has stored."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    limits = {"database_lock_timeout": LOCK_TIMEOUT, "database_statement_timeout": 2 * LOCK_TIMEOUT}
    return settings.model_copy(update={"group_commit": True, "database_transaction_timeout": 60.0, **limits})


def what_is_locked(what: str, buyer: User, product: Any) -> str:
    return {
        "account of the buyer": f"SELECT 1 FROM accounts WHERE user_id = {buyer.id} FOR UPDATE",
        "account of the seller": f"SELECT 1 FROM accounts WHERE user_id = {product.seller_id} FOR UPDATE",
        "buyer": f"SELECT 1 FROM users WHERE id = {buyer.id} FOR UPDATE",
        "product": f"SELECT 1 FROM products WHERE id = {product.id} FOR UPDATE",
        "stock": f"SELECT 1 FROM inventory WHERE product_id = {product.id} FOR UPDATE",
    }[what]


@pytest.mark.parametrize("what", ["account of the buyer", "account of the seller", "buyer", "product", "stock"])
async def test_an_order_that_needs_a_locked_row_waits_alone_and_its_neighbours_do_not(
    api: Api, database: Database, watch: Watch, what: str
) -> None:
    buyer, _, product = await api.shop()
    others = [await make_user(database, credits="100") for _ in range(NEIGHBOURS)]
    elsewhere = await make_product(database)

    def order(by: User, of: Any = elsewhere, **more: Any) -> Any:
        return api.post("/v1/orders", by=by, json=order_of((of, 1)), **more)

    async with locked(database, what_is_locked(what, buyer, product)):
        stuck, *tasks = await together(
            watch, order(others[0]), [order(buyer, product, key="k"), *(order(one) for one in others)]
        )
        async with asyncio.timeout(PROMPTLY):
            placed = await asyncio.gather(*tasks)
        assert [reply.status_code for reply in placed] == [201] * NEIGHBOURS
        assert not any("idempotency-replayed" in reply.headers for reply in placed)
        if what in ("account of the buyer", "stock"):
            # Such a lock is foreseen: the group is not even split.
            assert max(await rows(database, SIZES)) >= NEIGHBOURS
        # Those that come later are not held up either.
        async with asyncio.timeout(PROMPTLY):
            later = await asyncio.gather(*(order(one) for one in others))
        assert [reply.status_code for reply in later] == [201] * NEIGHBOURS
        if what == "stock":
            assert (await stuck).status_code == 201, "placing does not touch the stock"
        else:
            assert not stuck.done()
    # It takes effect when the row is free.
    reply: httpx2.Response = await stuck
    assert (reply.status_code, reply.json()["status"]) == (201, "pending")
    assert (await order(buyer, product, key="k")).content == reply.content
    await api.assert_books_balance()


@pytest.mark.parametrize("whose", ["payer", "payee"])
async def test_a_transfer_that_needs_a_locked_account_waits_alone_and_its_neighbours_do_not(
    api: Api, database: Database, watch: Watch, whose: str
) -> None:
    payer, payee = await make_user(database, credits="10"), await make_user(database)
    others = [await make_user(database, credits="100") for _ in range(NEIGHBOURS)]
    sink = await make_user(database)

    def transfer(by: User, to: User = sink, **more: Any) -> Any:
        return api.post("/v1/transfers", by=by, json={"to_user_id": to.id, "amount": "1.00"}, **more)

    account = f"SELECT 1 FROM accounts WHERE user_id = {(payer if whose == 'payer' else payee).id} FOR UPDATE"
    async with locked(database, account):
        stuck, *tasks = await together(
            watch, transfer(others[0]), [transfer(payer, payee, key="k"), *(transfer(one) for one in others)]
        )
        async with asyncio.timeout(PROMPTLY):
            made = await asyncio.gather(*tasks)
            assert max(await rows(database, SIZES)) >= NEIGHBOURS, "the group was split"
            later = await asyncio.gather(*(transfer(one) for one in others))
        assert [reply.status_code for reply in (*made, *later)] == [201] * 2 * NEIGHBOURS
        assert not any("idempotency-replayed" in reply.headers for reply in made)
        assert not stuck.done()
    reply: httpx2.Response = await stuck
    assert reply.status_code == 201
    assert (await transfer(payer, payee, key="k")).content == reply.content
    assert await rows(database, "SELECT count(*) FROM transfers WHERE kind = 'transfer'") == [2 * NEIGHBOURS + 2]
    await api.assert_books_balance()


async def test_a_request_that_is_cancelled_while_its_client_is_looked_for_leaves_its_group_alone(
    api: Api, database: Database, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    product = await make_product(database)
    first, leaving, *others = [await make_user(database, credits="100") for _ in range(5)]

    def order(by: User) -> Any:
        return api.post("/v1/orders", by=by, key=f"k-{by.id}", json=order_of((product, 1)))

    # It has waited long enough that its client may have left, and its task ends while that is found out.
    monkeypatch.setattr(groups, "_LONG", 0.0)
    cancelled: list[bool] = []

    async def cancel_the_first(_: Request) -> bool:
        if not cancelled:
            cancelled.append(tasks[0].cancel())
            await asyncio.sleep(0.05)
            return True
        return False

    ahead, *tasks = await queue(watch, order(first), (order(one) for one in (leaving, *others)))
    monkeypatch.setattr(Request, "is_disconnected", cancel_the_first)
    watch.open()

    assert [reply.status_code for reply in await asyncio.gather(ahead, *tasks[1:])] == [201] * 4
    assert cancelled == [True]
    assert "failed" not in caplog.text
    assert await rows(database, SIZES) == [3, 1]
