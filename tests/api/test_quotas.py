"""Quotas: how many orders of a buyer may await payment, and how many products a seller may have."""

import asyncio
from collections import Counter

import pytest

from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.conftest import BOTH_PATHS
from tests.factories import make_category, make_user

pytestmark = BOTH_PATHS

MOST = 3


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"unpaid_orders_per_user": MOST, "products_per_seller": MOST})


async def rows(api: Api) -> tuple[int, int]:
    """The number of orders and of products."""
    counts = "SELECT (SELECT count(*) FROM orders) * 1000 + (SELECT count(*) FROM products)"
    orders, products = divmod(await api.scalar(counts), 1000)
    return orders, products


async def test_a_buyer_has_no_more_unpaid_orders_than_the_quota(api: Api) -> None:
    buyer, _, product = await api.shop(credits="5", price="10.00")
    placed = [await api.place(buyer, (product, 1)) for _ in range(MOST)]
    assert {one["status"] for one in placed} == {"awaiting_payment"}
    refused = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))
    problem = assert_problem(refused, 409, "quota_exceeded")
    assert "3 of your orders await payment; the limit is 3" in problem["detail"]
    assert (await rows(api))[0] == MOST
    # Another buyer has a quota of their own, and a paid order counts towards none.
    other = await make_user(api.database)
    assert (await api.place(other, (product, 1)))["status"] == "awaiting_payment"
    assert (await api.post(f"/v1/orders/{placed[0]['id']}/cancel", by=buyer)).status_code == 200
    assert (await api.place(buyer, (product, 1)))["status"] == "awaiting_payment"


async def test_orders_that_are_paid_are_not_limited(api: Api) -> None:
    buyer, _, product = await api.shop(credits="1000", price="10.00")
    for _ in range(MOST + 2):
        assert (await api.place(buyer, (product, 1)))["status"] == "pending"


async def test_simultaneous_orders_do_not_exceed_the_quota(api: Api) -> None:
    buyer, _, product = await api.shop(credits="5", price="10.00")
    replies = await asyncio.gather(
        *(api.post("/v1/orders", by=buyer, json=order_of((product, 1))) for _ in range(4 * MOST))
    )
    # On a busy machine some of them are answered with 503.
    by_status = Counter(reply.status_code for reply in replies)
    assert by_status.keys() <= {201, 409, 503}
    assert (await rows(api))[0] == by_status[201] <= MOST
    for _ in range(MOST + 1):
        last = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))
    assert (last.status_code, (await rows(api))[0]) == (409, MOST)


def product(category: int, sku: str) -> dict[str, object]:
    return {"sku": sku, "name": sku, "price": "1.00", "category_id": category}


async def sell(api: Api, seller: User, category: int, *skus: str) -> int:
    """PUT these products; the status of the reply."""
    wanted = {"products": [product(category, sku) for sku in skus]}
    return (await api.request("PUT", "/v1/products", by=seller, json=wanted)).status_code


async def test_a_seller_has_no_more_products_than_the_quota(api: Api) -> None:
    seller, category = await make_user(api.database), (await make_category(api.database)).id
    assert await sell(api, seller, category, "a", "b") == 200
    assert await sell(api, seller, category, "b", "c", "d") == 409
    assert (await api.post("/v1/products", by=seller, json=product(category, "c"))).status_code == 201
    refused = await api.post("/v1/products", by=seller, json=product(category, "d"))
    problem = assert_problem(refused, 409, "quota_exceeded")
    assert problem["detail"] == "you have 3 products, including archived ones; the limit is 3"
    assert await sell(api, seller, category, "a", "b", "c") == 200, "what exists can be changed"
    assert (await rows(api))[1] == MOST
    other = await make_user(api.database)
    assert await sell(api, other, category, "d") == 200


async def test_archiving_a_product_makes_no_room_for_another_one(api: Api) -> None:
    seller, category = await make_user(api.database), (await make_category(api.database)).id
    assert await sell(api, seller, category, "a", "b", "c") == 200
    first = await api.scalar("SELECT min(id) FROM products")
    assert (await api.delete(f"/v1/products/{first}", by=seller)).status_code == 204
    assert await sell(api, seller, category, "d") == 409


async def test_simultaneous_products_do_not_exceed_the_quota(api: Api) -> None:
    seller, category = await make_user(api.database), (await make_category(api.database)).id
    made = [api.post("/v1/products", by=seller, json=product(category, f"one-{number}")) for number in range(2 * MOST)]
    put = [sell(api, seller, category, f"put-{number}") for number in range(MOST)]
    await asyncio.gather(*made, *put)
    # On a busy machine some of them are answered with 503.
    assert 1 <= (await rows(api))[1] <= MOST
    for number in range(MOST + 1):
        last = await sell(api, seller, category, f"later-{number}")
    assert (last, (await rows(api))[1]) == (409, MOST)


async def test_the_count_of_unpaid_orders_reads_their_index_only(api: Api) -> None:
    explained = (
        "EXPLAIN (FORMAT JSON) SELECT count(*) FROM (SELECT FROM orders WHERE buyer_id = 1 AND expires_at IS NOT NULL "
        "LIMIT 10000) AS bounded"
    )
    async with api.database.engine.connect() as connection:
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        (plan,) = (await connection.exec_driver_sql(explained)).scalar_one()
    assert "ix_orders_buyer_id_unpaid" in str(plan)
    assert "'Node Type': 'Index Only Scan'" in str(plan)
