"""Many at once for the last pieces and the last credits, in one group or in several: exactly as one after another."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, amounts, order_of
from tests.concurrency.groups.watch import Watch, together
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user

SIZES = "SELECT count(*) FROM idempotency_keys WHERE key LIKE 'k-%' GROUP BY xmin::text ORDER BY 1 DESC"
"""How many of the replies each transaction has stored."""


@pytest.fixture(params=[500, 8], ids=["one group", "several groups"])
def size(request: pytest.FixtureRequest) -> int:
    """The most requests in a group."""
    made: int = request.param
    return made


@pytest.fixture
def settings(settings: Settings, size: int) -> Settings:
    return settings.model_copy(
        update={"group_commit": True, "group_commit_size": size, "group_commit_wait": 60.0, "outbox_batch_size": 50}
    )


async def in_one_queue(api: Api, watch: Watch, requests: list[Any]) -> list[httpx2.Response]:
    """The replies to the requests, which arrive in this order while a commit is under way."""
    stranger, sink = await make_user(api.database, credits="100"), await make_user(api.database)
    other = await make_product(api.database)
    path = requests[0][0]
    body = order_of((other, 1)) if path == "/v1/orders" else {"to_user_id": sink.id, "amount": "1.00"}
    tasks = await together(
        watch,
        api.post(path, by=stranger, json=body),
        [api.post(path, by=by, key=f"k-{number}", json=body) for number, (path, by, body) in enumerate(requests)],
    )
    replies = list(await asyncio.gather(*tasks))
    assert not any("idempotency-replayed" in reply.headers for reply in replies)
    return replies


async def assert_sizes(api: Api, size: int, number: int) -> None:
    sizes = await rows(api.database, SIZES)
    assert sum(sizes) == number
    assert max(sizes) == min(size, number), sizes


async def test_of_a_hundred_buyers_for_the_last_ten_pieces_ten_get_one_and_the_rest_their_credits_back(
    api: Api, watch: Watch, size: int
) -> None:
    seller = await make_user(api.database)
    scarce = await make_product(api.database, seller=seller, stock=10, price="3.00")
    buyers = [await make_user(api.database, credits="5") for _ in range(100)]

    replies = await in_one_queue(api, watch, [("/v1/orders", buyer, order_of((scarce, 1))) for buyer in buyers])

    assert Counter((reply.status_code, reply.json()["status"]) for reply in replies) == {(201, "pending"): 100}
    await assert_sizes(api, size, 100)
    while await api.scalar("SELECT count(*) FROM outbox"):
        await api.process()
    ids = [reply.json()["id"] for reply in replies]
    statuses = [await api.status_of(order_id) for order_id in ids]
    # Those who came first.
    assert statuses == ["confirmed"] * 10 + ["rejected"] * 90
    assert await api.stock_of(scarce) == (10, 10)
    assert await api.credits_of(seller) == amounts("30")
    credits_left = [await api.credits_of(buyer) for buyer in buyers]
    assert credits_left == [amounts("2")] * 10 + [amounts("5")] * 90
    holds = "SELECT state, count(*) FROM transfers WHERE kind = 'order' AND credit_account_id ="
    account = await api.scalar("SELECT id FROM accounts WHERE user_id = :id", id=seller.id)
    assert dict(await rows(api.database, f"{holds} {account} GROUP BY state")) == {"posted": 10, "voided": 90}
    await api.assert_books_balance()


@pytest.mark.parametrize("refuse", [False, True], ids=["await payment", "refuse"])
async def test_of_fifty_orders_of_a_buyer_whose_credits_cover_seven_the_first_seven_are_pending(
    api: Api, watch: Watch, size: int, refuse: bool
) -> None:
    buyer, _, product = await api.shop(credits="23.99", price="3.00")
    more = {"on_insufficient_credits": "refuse"} if refuse else {}

    replies = await in_one_queue(api, watch, [("/v1/orders", buyer, order_of((product, 1), **more))] * 50)

    told = [(reply.status_code, reply.json()["status"]) for reply in replies]
    beyond = (402, 402) if refuse else (201, "awaiting_payment")
    assert told == [(201, "pending")] * 7 + [beyond] * 43
    assert await api.credits_of(buyer) == amounts("23.99", "21")
    await assert_sizes(api, size, 50)
    await api.process()
    by_status = dict(await rows(api.database, "SELECT status, count(*) FROM orders WHERE total = 3 GROUP BY status"))
    assert by_status == {"confirmed": 7, **({} if refuse else {"awaiting_payment": 43})}
    assert await api.credits_of(buyer) == amounts("2.99")
    await api.assert_books_balance()


async def test_of_fifty_transfers_of_a_payer_whose_credits_cover_seven_the_first_seven_are_made(
    api: Api, watch: Watch, size: int
) -> None:
    payer, payee = await make_user(api.database, credits="23.99"), await make_user(api.database)
    body = {"to_user_id": payee.id, "amount": "3.00"}

    replies = await in_one_queue(api, watch, [("/v1/transfers", payer, body)] * 50)

    assert [reply.status_code for reply in replies] == [201] * 7 + [402] * 43
    assert (await api.credits_of(payer), await api.credits_of(payee)) == (amounts("2.99"), amounts("21"))
    await assert_sizes(api, size, 50)
    await api.assert_books_balance()


@pytest.mark.parametrize("forward", [True, False], ids=["in the order of payment", "the other way round"])
async def test_credits_that_arrive_in_a_group_can_be_passed_on_by_those_who_come_later(
    api: Api, watch: Watch, forward: bool
) -> None:
    users: list[User] = [await make_user(api.database, credits="1" if number == 0 else "0") for number in range(21)]
    wanted = [("/v1/transfers", payer, {"to_user_id": payee.id, "amount": "1.00"}) for payer, payee in pairwise(users)]

    replies = await in_one_queue(api, watch, wanted if forward else wanted[::-1])

    statuses = [reply.status_code for reply in replies]
    assert statuses == ([201] * 20 if forward else [402] * 19 + [201])
    last = users[-1] if forward else users[1]
    assert await api.credits_of(last) == amounts("1")
    await api.assert_books_balance()
