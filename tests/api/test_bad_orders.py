"""What is wrong with an order is a 4xx that names the field, and nothing is written."""

import json
from typing import Any

import pytest

from services.orders.models import MAX_ITEMS
from tests.api.client import FRESH, Api, assert_problem, order_of
from tests.factories import make_product, make_user

UNKNOWN = 2**62

BAD_QUANTITIES = [0, -1, 1_000_001, 2**31, 2**63, 2**64, 10**40, 1.0, 1.5, "1", "", True, None, [], {}]
BAD_IDS = [0, -1, 2**63, 2**64, 1.0, "1", True, None, [], {}]


@pytest.mark.parametrize("quantity", BAD_QUANTITIES, ids=repr)
async def test_an_invalid_quantity_is_refused(api: Api, quantity: Any) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, quantity)))

    assert_problem(reply, 422, "invalid_input", pointers=["#/items/0/quantity"])
    assert await api.everything() == before


@pytest.mark.parametrize("product_id", BAD_IDS, ids=repr)
async def test_an_invalid_product_id_is_refused(api: Api, product_id: Any) -> None:
    buyer, _, _ = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json={"items": [{"product_id": product_id, "quantity": 1}]})

    assert_problem(reply, 422, "invalid_input", pointers=["#/items/0/product_id"])
    assert await api.everything() == before


async def test_products_that_cannot_be_ordered_are_all_named_at_once(api: Api) -> None:
    buyer, _, product = await api.shop()
    inactive = await make_product(api.database, is_active=False)
    own = await make_product(api.database, seller=buyer)
    items = [{"product_id": one, "quantity": 1} for one in (product.id, UNKNOWN, inactive.id, own.id)]
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json={"items": items})

    pointers = ["#/items/1/product_id", "#/items/2/product_id", "#/items/3/product_id"]
    problem = assert_problem(reply, 422, "invalid_input", pointers=pointers)
    assert [fault["detail"] for fault in problem["errors"]] == [
        f"product {UNKNOWN} is not for sale",
        f"product {inactive.id} is not for sale",
        f"product {own.id} is your own",
    ]
    assert await api.everything() == before


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/items"),
        ({"items": []}, "#/items"),
        ({"items": None}, "#/items"),
        ({"items": {}}, "#/items"),
        ({"items": "1"}, "#/items"),
        ({"items": [1]}, "#/items/0"),
        ({"items": [[]]}, "#/items/0"),
        ([], "#"),
        (1, "#"),
        ("x", "#"),
        (None, "#"),
        (True, "#"),
    ],
    ids=repr,
)
async def test_an_order_without_valid_lines_is_refused(api: Api, body: Any, pointer: str) -> None:
    buyer, _, _ = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=body)

    assert_problem(reply, 422, "invalid_input", pointers=[pointer])
    assert await api.everything() == before


async def test_an_order_of_a_thousand_lines_is_refused(api: Api) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of(*[(product, 1)] * 1000))

    assert_problem(reply, 422, "invalid_input", pointers=["#/items"])
    assert await api.everything() == before


async def test_an_order_of_as_many_lines_as_allowed_is_placed(api: Api) -> None:
    buyer, _, product = await api.shop(credits="10000", price="1.00", stock=1000)

    placed = await api.place(buyer, *[(product, 1)] * MAX_ITEMS)
    await api.process()

    assert (placed["item_count"], placed["total"]) == (MAX_ITEMS, f"{MAX_ITEMS}.00")
    assert await api.status_of(placed["id"]) == "confirmed"
    assert await api.stock_of(product) == (1000, MAX_ITEMS)


@pytest.mark.parametrize(
    ("field", "value"),
    [("total", "0.01"), ("status", "confirmed"), ("buyer_id", 1), ("id", "0"), ("price", 1), ("version", 7)],
)
async def test_what_the_service_decides_cannot_be_sent_with_an_order(api: Api, field: str, value: Any) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1), **{field: value}))

    assert_problem(reply, 422, "invalid_input", pointers=[f"#/{field}"])
    assert await api.everything() == before


@pytest.mark.parametrize("field", ["price", "unit_price", "total", "line"])
async def test_what_the_service_decides_cannot_be_sent_with_a_line(api: Api, field: str) -> None:
    buyer, _, product = await api.shop()
    body = {"items": [{"product_id": product.id, "quantity": 1, field: "0.01"}]}
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=body)

    assert_problem(reply, 422, "invalid_input", pointers=[f"#/items/0/{field}"])
    assert await api.everything() == before


@pytest.mark.parametrize(
    "reference", ["", "   ", "x" * 65, "a\x00b", 7, True, [], {}], ids=lambda value: repr(value)[:12]
)
async def test_an_invalid_reference_is_refused(api: Api, reference: Any) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()

    body = json.dumps(order_of((product, 1), reference=reference))
    reply = await api.post("/v1/orders", by=buyer, content=body, headers={"Content-Type": "application/json"})

    assert_problem(reply, 422, "invalid_input", pointers=["#/reference"])
    assert await api.everything() == before


async def test_a_reference_cannot_be_used_twice_by_one_buyer(api: Api) -> None:
    buyer, _, product = await api.shop()
    other = await make_user(api.database, credits="100")
    await api.place(buyer, (product, 1), reference="INV-1")
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 2), reference="INV-1"))

    assert_problem(reply, 409, "already_exists", pointers=["#/reference"])
    assert await api.everything() == before
    await api.place(other, (product, 1), reference="INV-1")


async def test_a_total_that_no_account_can_hold_is_refused(api: Api) -> None:
    buyer, _, product = await api.shop(price="9999999999999999.99")
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1_000_000), (product, 1_000_000)))

    assert_problem(reply, 422, "invalid_input", pointers=["#/items"])
    assert await api.everything() == before


async def test_an_unknown_choice_for_insufficient_credits_is_refused(api: Api) -> None:
    buyer, _, product = await api.shop()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1), on_insufficient_credits="lend"))

    assert_problem(reply, 422, "invalid_input", pointers=["#/on_insufficient_credits"])


async def test_orders_without_enough_credits_are_refused_if_the_client_asks_for_that(api: Api) -> None:
    buyer, _, product = await api.shop(credits="9.99")
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1), on_insufficient_credits="refuse"))

    assert_problem(reply, 402, "insufficient_credits")
    assert await api.everything() == before


async def test_placing_an_order_requires_a_token(api: Api) -> None:
    _, _, product = await api.shop()
    before = await api.everything()

    reply = await api.post("/v1/orders", key=FRESH, json=order_of((product, 1)))

    assert_problem(reply, 401, "unauthenticated")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert await api.everything() == before
