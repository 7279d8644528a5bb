"""What a refused batch leaves in the table of stored replies: enough to send its reply again, and not much more."""

import random
from typing import Any

import pytest

from services.users.models import User
from tests.api.client import Api
from tests.factories import make_product, make_user

SENT = 20
NO_ONE = range(2**61, 2**62)
"""Ids that no row has."""


async def grown(api: Api, user: User, path: str, body: dict[str, Any], status: int) -> tuple[int, int]:
    """The bytes of such a reply, and those that the table grows by if it is stored."""
    size = "SELECT pg_total_relation_size('idempotency_keys')"
    before = await api.scalar(size)
    replied = 0
    for number in range(SENT):
        first, again = [await api.post(path, by=user, key=f"k{number}", json=body) for _ in range(2)]
        assert (first.status_code, again.headers["idempotency-replayed"]) == (status, "true"), first.text[:500]
        assert (again.status_code, again.content) == (first.status_code, first.content)
        replied = len(first.content)
    return replied, (await api.scalar(size) - before) // SENT


def transfers(mode: str) -> dict[str, Any]:
    """500 transfers to users that do not exist, each to another one."""
    to = random.Random(1).sample(NO_ONE, 500)
    return {"mode": mode, "transfers": [{"to_user_id": one, "amount": "1"} for one in to]}


async def test_the_refusal_of_an_atomic_batch_names_what_failed_and_is_small(api: Api) -> None:
    user = await make_user(api.database, credits="1000.00")
    replied, stored = await grown(api, user, "/v1/transfers/batch", transfers("atomic"), 422)
    assert replied < 500
    assert stored < 2500


async def test_an_independent_batch_of_which_all_fails_has_a_result_for_each_and_is_stored_small(api: Api) -> None:
    replied, stored = await grown(
        api, await make_user(api.database), "/v1/transfers/batch", transfers("independent"), 200
    )
    assert replied > 50_000, "otherwise this tests nothing"
    assert stored < 8000


async def test_the_refusal_of_an_order_of_many_lines_is_small(api: Api) -> None:
    user = await make_user(api.database)
    items = [{"product_id": one, "quantity": 1} for one in random.Random(1).sample(NO_ONE, 750)]
    replied, stored = await grown(api, user, "/v1/orders", {"items": items}, 422)
    assert replied < 3000
    assert stored < 4000


@pytest.mark.parametrize("fault", ["unknown categories", "skus that are listed twice"])
async def test_refused_products_leave_nothing(api: Api, fault: str) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database)
    before = await api.everything()
    products = [
        {
            "sku": "the same" if "twice" in fault else str(number),
            "name": "x",
            "price": "1",
            "category_id": product.category_id if "twice" in fault else 2**50 + number,
        }
        for number in range(1000)
    ]
    reply = await api.request("PUT", "/v1/products", by=seller, key="k", json={"products": products})
    assert (reply.status_code, len(reply.json()["errors"]), reply.json()["more_errors"]) == (422, 20, 980)
    assert len(reply.content) < 3000
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0
