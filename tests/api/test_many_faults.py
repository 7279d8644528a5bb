"""However much is wrong with a request, the reply is short: 20 faults, the number of the others, and texts are cut."""

from typing import Any

import httpx2
import pytest

from services.api.problems import LONGEST
from services.errors import MOST_FAULTS
from tests.api.client import Api
from tests.factories import make_user

MOST_BYTES = 8_192
"""A problem with 20 faults, each as long as those of our own schemas are."""


def assert_short(reply: httpx2.Response, status: int, faults: int, most: int = MOST_BYTES) -> dict[str, Any]:
    problem: dict[str, Any] = reply.json()
    assert reply.status_code == status, reply.text[:1000]
    assert len(problem["errors"]) == min(faults, MOST_FAULTS)
    assert problem.get("more_errors", 0) == max(0, faults - MOST_FAULTS)
    assert len(reply.content) <= most
    return problem


@pytest.mark.parametrize("number", [MOST_FAULTS, MOST_FAULTS + 1, 450])
async def test_unknown_fields_are_listed_up_to_a_number_and_counted(api: Api, number: int) -> None:
    user = await make_user(api.database)
    wanted = {"to_user_id": 1, "amount": "1", **{f"field{count}": 1 for count in range(number)}}
    problem = assert_short(await api.post("/v1/transfers", by=user, json=wanted), 422, number)
    assert ("more_errors" in problem) == (number > MOST_FAULTS)
    assert problem["errors"][0]["pointer"] == "#/field0"


async def test_faults_that_the_service_finds_are_listed_up_to_a_number_and_counted(api: Api) -> None:
    seller = await make_user(api.database)
    products = [{"sku": str(n), "name": "x", "price": "1", "category_id": 2**40 + n} for n in range(1000)]
    reply = await api.request("PUT", "/v1/products", by=seller, json={"products": products})
    assert_short(reply, 422, 1000)
    order = {"items": [{"product_id": 2**40 + n, "quantity": 1} for n in range(750)]}
    assert_short(await api.post("/v1/orders", by=seller, json=order), 422, 750)


async def test_what_the_client_sent_is_repeated_up_to_a_length(api: Api) -> None:
    user = await make_user(api.database)
    wanted = {"to_user_id": 1, "amount": "1", **{f"{count}{'x' * 500}": 1 for count in range(20)}}
    problem = assert_short(await api.post("/v1/transfers", by=user, json=wanted), 422, 20, 20 * 2 * LONGEST)
    assert problem["errors"][0]["pointer"] == "#/0" + "x" * (LONGEST - 4) + "…"
    reply = await api.get(f"/v1/products?filter={'x' * 10_000}:eq:1")
    assert len(reply.json()["detail"]) == LONGEST
    assert_short(reply, 400, 0)
