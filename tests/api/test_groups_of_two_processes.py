"""Two processes that make groups of the same requests: each takes effect once."""

import asyncio
import random
from collections.abc import AsyncIterator

import httpx2
import pytest

from services.app import create_app
from tests.api.client import Api, order_of
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user

BUYERS = 12
ORDERS = 4
"""Of each buyer, with credits for three."""


@pytest.fixture
async def other(api: Api) -> AsyncIterator[Api]:
    """The application once more, on the same database."""
    app = create_app(api.settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://other.test") as client,
    ):
        yield Api(app, client, api.settings, api.database)


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/transfers"])
async def test_requests_that_are_sent_to_two_processes_at_once_take_effect_once(
    api: Api, other: Api, path: str
) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller, price="3.00")
    buyers = [await make_user(api.database, credits="10") for _ in range(BUYERS)]
    order = order_of((product, 1), on_insufficient_credits="refuse")
    body = order if path == "/v1/orders" else {"to_user_id": seller.id, "amount": "3.00"}

    async def send(to: Api, by: int, number: int) -> httpx2.Response:
        while True:
            reply = await to.post(path, by=buyers[by], key=f"k-{by}-{number}", json=body)
            if reply.status_code in (201, 402):
                return reply
            # The other process is handling it.
            assert (reply.status_code, reply.json()["code"]) == (409, "request_in_flight"), reply.text
            await asyncio.sleep(0.02)

    wanted = [(by, number) for by in range(BUYERS) for number in range(ORDERS)]
    sends = [(to, *one) for one in wanted for to in (api, other)]
    random.Random(16).shuffle(sends)
    replies = await asyncio.gather(*(send(*one) for one in sends))

    answers: dict[tuple[int, int], set[bytes]] = {}
    for (_, by, number), reply in zip(sends, replies, strict=True):
        answers.setdefault((by, number), set()).add(reply.content)
    assert all(len(told) == 1 for told in answers.values()), "both processes give the same answer"
    assert sum("idempotency-replayed" not in reply.headers for reply in replies) == len(wanted)
    assert sum(reply.status_code == 201 for reply in replies) == 2 * 3 * BUYERS
    made = "orders" if path == "/v1/orders" else "transfers WHERE kind = 'transfer'"
    assert await rows(api.database, f"SELECT count(*) FROM {made}") == [3 * BUYERS]
    sizes = await rows(api.database, "SELECT count(*) FROM idempotency_keys GROUP BY xmin::text ORDER BY 1 DESC")
    assert max(sizes) > 1, "there were groups"
    for buyer in buyers:
        posted, held = await api.credits_of(buyer)
        assert posted - held == 1
    await api.assert_books_balance()
