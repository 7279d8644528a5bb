"""An order from start to end, over HTTP and through the worker."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tests.api.client import Api, assert_problem, order_of
from tests.conftest import BOTH_PATHS
from tests.factories import make_operator, make_product, make_user

pytestmark = BOTH_PATHS

MOVES = ("pay", "cancel", "fulfil")


async def test_a_placed_order_shows_what_was_bought_at_todays_price(api: Api) -> None:
    buyer, _, product = await api.shop(price="2.50")

    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 3), (product, 1), reference="INV-7"))

    assert reply.status_code == 201
    order = reply.json()
    assert reply.headers["location"] == f"/v1/orders/{order['id']}"
    assert reply.headers["etag"] == '"1"'
    assert UUID(order["id"]).version == 7
    summary = {"id": product.id, "sku": product.sku, "name": product.name}
    line = {"product_id": product.id, "returned": 0, "unit_price": "2.50", "product": summary}
    assert order == {
        "id": order["id"],
        "reference": "INV-7",
        "status": "pending",
        "total": "10.00",
        "refunded": "0.00",
        "item_count": 2,
        "version": 1,
        "created_at": order["created_at"],
        "updated_at": order["created_at"],
        "buyer": {"id": buyer.id, "full_name": "Bea Buyer"},
        "items": [
            {**line, "line": 1, "quantity": 3, "line_total": "7.50"},
            {**line, "line": 2, "quantity": 1, "line_total": "2.50"},
        ],
    }
    detail = (await api.get(reply.headers["location"], by=buyer)).json()
    assert {**detail, "transitions": None} == {**order, "transitions": None}
    assert await api.credits_of(buyer) == (Decimal(1000), Decimal(10))


async def test_a_worker_confirms_an_order_pays_the_seller_and_reserves_the_stock(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=5)
    other = await make_product(api.database, price="1.00", stock=5)
    placed = await api.place(buyer, (product, 2), (other, 1))

    assert (await api.process()).processed == 1

    order = (await api.get(f"/v1/orders/{placed['id']}", by=buyer)).json()
    assert (order["status"], order["version"]) == ("confirmed", 2)
    moves = [(step["from_status"], step["to_status"]) for step in order["transitions"]]
    assert moves == [(None, "pending"), ("pending", "confirmed")]
    assert await api.credits_of(buyer) == (Decimal(979), Decimal(0))
    assert await api.credits_of(seller) == (Decimal(20), Decimal(0))
    assert (await api.stock_of(product), await api.stock_of(other)) == ((5, 2), (5, 1))
    await api.assert_books_balance()


async def test_a_price_that_changes_later_does_not_change_an_order(api: Api) -> None:
    buyer, seller, product = await api.shop(price="10.00")
    placed = await api.place(buyer, (product, 1))
    changed = await api.patch(f"/v1/products/{product.id}", by=seller, version=1, json={"price": "99.00"})
    assert changed.status_code == 200
    await api.process()
    order = (await api.get(f"/v1/orders/{placed['id']}", by=buyer)).json()
    assert (order["total"], order["items"][0]["unit_price"]) == ("10.00", "10.00")
    assert (await api.credits_of(buyer))[0] == Decimal(990)


async def test_two_lines_of_one_product_count_together(api: Api) -> None:
    buyer, _, product = await api.shop(stock=5)
    too_many = await api.place(buyer, (product, 3), (product, 3))
    enough = await api.place(buyer, (product, 3), (product, 2))
    await api.process()
    assert [await api.status_of(order["id"]) for order in (too_many, enough)] == ["rejected", "confirmed"]
    assert await api.stock_of(product) == (5, 5)
    await api.assert_books_balance()


async def test_an_order_out_of_stock_is_rejected_and_its_hold_voided(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=1)
    placed = await api.place(buyer, (product, 2))
    await api.process()
    order = (await api.get(f"/v1/orders/{placed['id']}", by=buyer)).json()
    assert (order["status"], order["transitions"][-1]["reason"]) == ("rejected", "out of stock")
    assert await api.credits_of(buyer) == (Decimal(1000), Decimal(0))
    assert await api.credits_of(seller) == (Decimal(0), Decimal(0))
    assert await api.stock_of(product) == (1, 0)
    assert await api.scalar("SELECT string_agg(state, ',') FROM transfers WHERE kind = 'order'") == "voided"
    await api.assert_books_balance()


async def test_an_order_beyond_the_credits_waits_until_it_is_paid(api: Api) -> None:
    buyer, _, product = await api.shop(credits="5")
    placed = await api.place(buyer, (product, 1))
    path = f"/v1/orders/{placed['id']}/pay"
    assert placed["status"] == "awaiting_payment"
    assert (await api.process()).processed == 0
    assert_problem(await api.post(path, by=buyer), 402, "insufficient_credits")
    operator = await make_operator(api.database)
    await api.post("/v1/top-ups", by=operator, json={"user_id": buyer.id, "amount": "5"})

    paid = await api.post(path, by=buyer)

    assert (paid.status_code, paid.json()["status"], paid.headers["etag"]) == (200, "pending", '"2"')
    assert await api.credits_of(buyer) == (Decimal(10), Decimal(10))
    assert (await api.process()).processed == 1
    assert await api.status_of(placed["id"]) == "confirmed"
    await api.assert_books_balance()


async def test_credits_held_for_one_order_cannot_pay_another(api: Api) -> None:
    buyer, _, product = await api.shop(credits="15")
    first, second = await api.place(buyer, (product, 1)), await api.place(buyer, (product, 1))
    assert (first["status"], second["status"]) == ("pending", "awaiting_payment")


@pytest.mark.parametrize("status", ["awaiting_payment", "pending", "confirmed"])
async def test_a_cancelled_order_gives_everything_back(api: Api, status: str) -> None:
    buyer, seller, product = await api.shop(credits="5" if status == "awaiting_payment" else "50")
    before = await api.credits_of(buyer), await api.credits_of(seller), await api.stock_of(product)
    placed = await api.place(buyer, (product, 2))
    if status == "confirmed":
        await api.process()
    assert await api.status_of(placed["id"]) == status

    reply = await api.post(f"/v1/orders/{placed['id']}/cancel", by=buyer, json={"reason": "changed my mind"})

    assert reply.status_code == 200
    last = reply.json()["transitions"][-1]
    assert (last["from_status"], last["to_status"], last["reason"]) == (status, "cancelled", "changed my mind")
    assert (await api.credits_of(buyer), await api.credits_of(seller), await api.stock_of(product)) == before
    await api.process()
    assert await api.status_of(placed["id"]) == "cancelled", "the late event changes nothing"
    assert (await api.credits_of(buyer), await api.credits_of(seller), await api.stock_of(product)) == before
    assert await api.scalar("SELECT count(*) FROM outbox") == 0
    await api.assert_books_balance()


async def test_a_refund_that_the_seller_cannot_pay_is_refused_and_nothing_moves(api: Api) -> None:
    buyer, seller, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    await api.process()
    spent = await api.post("/v1/transfers", by=seller, json={"to_user_id": buyer.id, "amount": "5"})
    assert spent.status_code == 201
    before = await api.everything()

    reply = await api.post(f"/v1/orders/{placed['id']}/cancel", by=buyer)

    assert_problem(reply, 402, "insufficient_credits")
    assert await api.everything() == before


async def test_fulfilled_goods_leave_the_stock(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=5)
    placed = await api.place(buyer, (product, 2))
    await api.process()
    reply = await api.post(f"/v1/orders/{placed['id']}/fulfil", by=seller)
    assert (reply.status_code, reply.json()["status"]) == (200, "fulfilled")
    assert await api.stock_of(product) == (3, 0)
    await api.assert_books_balance()


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ("awaiting_payment", {"pay", "cancel"}),
        ("pending", {"cancel"}),
        ("confirmed", {"cancel", "fulfil"}),
        ("fulfilled", set()),
        ("rejected", set()),
        ("cancelled", set()),
    ],
)
async def test_moves_that_a_status_does_not_allow_are_conflicts(api: Api, status: str, allowed: set[str]) -> None:
    buyer, seller, product = await api.shop(credits="5" if status == "awaiting_payment" else "50", stock=1)
    placed = await api.place(buyer, (product, 2 if status == "rejected" else 1))
    path = f"/v1/orders/{placed['id']}"
    if status in ("confirmed", "fulfilled", "rejected"):
        await api.process()
    if status == "fulfilled":
        await api.post(f"{path}/fulfil", by=seller)
    if status == "cancelled":
        await api.post(f"{path}/cancel", by=buyer)
    assert await api.status_of(placed["id"]) == status
    before = await api.everything()

    for move in MOVES:
        if move not in allowed:
            reply = await api.post(f"{path}/{move}", by=seller if move == "fulfil" else buyer)
            assert_problem(reply, 409, "conflict")
    assert await api.everything() == before


async def test_another_users_order_is_not_found(api: Api) -> None:
    buyer, _, product = await api.shop()
    stranger = await make_user(api.database, credits="100")
    placed = await api.place(buyer, (product, 1))
    path = f"/v1/orders/{placed['id']}"
    before = await api.everything()

    assert_problem(await api.get(path, by=stranger), 404, "not_found")
    for move in MOVES:
        assert_problem(await api.post(f"{path}/{move}", by=stranger), 404, "not_found")
    assert await api.everything() == before


async def test_each_party_moves_an_order_only_as_it_may(api: Api) -> None:
    buyer, seller, product = await api.shop()
    second_seller = await make_user(api.database)
    second = await make_product(api.database, seller=second_seller)
    operator = await make_operator(api.database)
    shared = await api.place(buyer, (product, 1), (second, 1))
    waiting = await api.place(buyer, (product, 1000))
    await api.process()
    path = f"/v1/orders/{shared['id']}"

    for viewer in (buyer, seller, second_seller, operator):
        assert (await api.get(path, by=viewer)).status_code == 200
    assert_problem(await api.post(f"/v1/orders/{waiting['id']}/pay", by=seller), 403, "forbidden")
    assert_problem(await api.post(f"{path}/fulfil", by=buyer), 403, "forbidden")
    for one_of_two in (seller, second_seller):
        assert_problem(await api.post(f"{path}/fulfil", by=one_of_two), 403, "forbidden")
        assert_problem(await api.post(f"{path}/cancel", by=one_of_two), 403, "forbidden")
    assert (await api.post(f"{path}/fulfil", by=operator)).status_code == 200


async def test_lists_show_each_side_its_own_orders_newest_first(api: Api) -> None:
    buyer, seller, product = await api.shop()
    other = await make_user(api.database, credits="100")
    operator = await make_operator(api.database)
    mine = [(await api.place(buyer, (product, 1), (product, 2)))["id"] for _ in range(3)]
    theirs = (await api.place(other, (product, 1)))["id"]

    async def ids(query: str, by: Any) -> list[str]:
        reply = await api.get(f"/v1/orders{query}", by=by)
        assert reply.status_code == 200, reply.text
        return [order["id"] for order in reply.json()["data"]]

    assert await ids("", buyer) == mine[::-1]
    assert await ids("", seller) == []
    assert await ids("?as=seller", seller) == [theirs, *mine[::-1]]
    assert await ids("?as=everybody", operator) == [theirs, *mine[::-1]]
    assert_problem(await api.get("/v1/orders?as=everybody", by=buyer), 403, "forbidden")
    assert_problem(await api.get("/v1/orders?as=x", by=buyer), 422, "invalid_input", pointers=["query/as"])
    assert await ids("?filter=status:in:pending,confirmed&filter=total:gte:30&sort=id", buyer) == mine
    assert await ids("?filter=total:lt:30", buyer) == []
    assert await ids("?filter=reference:is_null:false", buyer) == []
    first = (await api.get("/v1/orders?limit=2", by=buyer)).json()
    assert first["has_more"] is True
    rest = (await api.get(f"/v1/orders?limit=2&cursor={first['next_cursor']}", by=buyer)).json()
    assert [order["id"] for order in first["data"] + rest["data"]] == mine[::-1]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)
