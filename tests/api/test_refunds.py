"""Refunds of pieces of an order: never more than was paid, never twice, and the stock is returned."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from services.catalog.models import Product
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_product, make_user


async def confirmed(api: Api, buyer: User, *lines: tuple[Product, int]) -> str:
    placed = await api.place(buyer, *lines)
    assert (await api.process()).processed == 1
    return str(placed["id"])


async def refund(api: Api, order_id: str, by: User, *lines: tuple[int, int], **more: Any) -> Any:
    body = {"lines": [{"line": line, "quantity": quantity} for line, quantity in lines]} if lines else {}
    return await api.post(f"/v1/orders/{order_id}/refunds", by=by, json={**body, **more})


async def test_part_of_a_confirmed_order_is_refunded_with_what_was_paid_for_it(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.50", stock=10)
    order_id = await confirmed(api, buyer, (product, 4), (product, 2))

    reply = await refund(api, order_id, seller, (1, 3), reason="broken")

    assert reply.status_code == 201, reply.text
    given = reply.json()
    assert (given["amount"], given["reason"], given["lines"]) == ("7.50", "broken", [{"line": 1, "quantity": 3}])
    assert await api.credits_of(buyer) == (Decimal("992.50"), Decimal(0))
    assert await api.credits_of(seller) == (Decimal("7.50"), Decimal(0))
    assert await api.stock_of(product) == (10, 3)
    order = (await api.get(f"/v1/orders/{order_id}", by=buyer)).json()
    assert (order["status"], order["refunded"]) == ("confirmed", "7.50")
    assert [item["returned"] for item in order["items"]] == [3, 0]
    listed = (await api.get(f"/v1/orders/{order_id}/refunds", by=buyer)).json()
    assert listed["data"] == [given]
    await api.assert_books_balance()


async def test_refunded_pieces_of_a_fulfilled_order_are_on_hand_again(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00", stock=10)
    order_id = await confirmed(api, buyer, (product, 4))
    assert (await api.post(f"/v1/orders/{order_id}/fulfil", by=seller)).status_code == 200
    assert await api.stock_of(product) == (6, 0)

    assert (await refund(api, order_id, seller)).status_code == 201

    assert await api.stock_of(product) == (10, 0)
    assert await api.status_of(order_id) == "fulfilled"
    assert await api.credits_of(buyer) == (Decimal(1000), Decimal(0))
    await api.assert_books_balance()


async def test_refunding_more_than_is_left_is_refused_and_names_the_line(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00")
    order_id = await confirmed(api, buyer, (product, 4), (product, 1))
    assert (await refund(api, order_id, seller, (1, 3))).status_code == 201
    before = await api.everything()

    too_many = await refund(api, order_id, seller, (1, 2), (2, 1))
    problem = assert_problem(too_many, 422, "invalid_input", pointers=["#/lines/0/quantity"])
    assert "1 of 4 pieces" in problem["errors"][0]["detail"]
    wrong_line = await refund(api, order_id, seller, (3, 1), (2, 1), (2, 1))
    assert_problem(wrong_line, 422, "invalid_input", pointers=["#/lines/0/line", "#/lines/2/line"])
    assert await api.everything() == before


async def test_a_cancellation_after_a_refund_pays_back_only_the_rest(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00", stock=10)
    order_id = await confirmed(api, buyer, (product, 4))
    assert (await refund(api, order_id, seller, (1, 3))).status_code == 201

    assert (await api.post(f"/v1/orders/{order_id}/cancel", by=buyer)).status_code == 200

    assert await api.credits_of(buyer) == (Decimal(1000), Decimal(0))
    assert await api.credits_of(seller) == (Decimal(0), Decimal(0))
    assert await api.stock_of(product) == (10, 0)
    listed = (await api.get(f"/v1/orders/{order_id}/refunds", by=buyer)).json()["data"]
    assert [one["amount"] for one in listed] == ["6.00", "2.00"]
    again = await refund(api, order_id, seller)
    assert_problem(again, 409, "conflict")
    await api.assert_books_balance()


async def test_a_fully_refunded_confirmed_order_is_cancelled(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00", stock=10)
    order_id = await confirmed(api, buyer, (product, 4))
    assert (await refund(api, order_id, seller, (1, 1))).status_code == 201
    assert (await refund(api, order_id, seller)).status_code == 201

    order = (await api.get(f"/v1/orders/{order_id}", by=buyer)).json()
    assert (order["status"], order["refunded"], order["transitions"][-1]["reason"]) == (
        "cancelled",
        "8.00",
        "everything was refunded",
    )
    assert_problem(await api.post(f"/v1/orders/{order_id}/fulfil", by=seller), 409, "conflict")
    await api.assert_books_balance()


async def test_only_what_is_left_after_a_refund_is_fulfilled(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00", stock=10)
    order_id = await confirmed(api, buyer, (product, 4))
    assert (await refund(api, order_id, seller, (1, 1))).status_code == 201
    assert (await api.post(f"/v1/orders/{order_id}/fulfil", by=seller)).status_code == 200
    assert await api.stock_of(product) == (7, 0)
    await api.assert_books_balance()


async def test_sellers_refund_their_own_lines_and_operators_any(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00")
    other_seller = await make_user(api.database)
    other = await make_product(api.database, seller=other_seller, price="3.00")
    order_id = await confirmed(api, buyer, (product, 2), (other, 2))

    # A line of another seller is like one that does not exist.
    for line in (2, 3):
        refused = await refund(api, order_id, seller, (1, 1), (line, 1))
        problem = assert_problem(refused, 422, "invalid_input", pointers=["#/lines/1/line"])
        assert problem["errors"][0]["detail"] == f"there is no line {line} that you may refund"
    assert_problem(await refund(api, order_id, buyer), 403, "forbidden")
    stranger = await make_user(api.database)
    assert_problem(await refund(api, order_id, stranger), 404, "not_found")
    # Without lines: all of the caller's.
    assert (await refund(api, order_id, seller)).json()["amount"] == "4.00"
    assert await api.credits_of(other_seller) == (Decimal(6), Decimal(0))
    assert (await refund(api, order_id, await make_operator(api.database), (2, 1))).json()["amount"] == "3.00"
    assert await api.credits_of(other_seller) == (Decimal(3), Decimal(0))
    await api.assert_books_balance()


async def test_a_seller_who_has_spent_the_credits_cannot_refund_and_nothing_moves(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00")
    order_id = await confirmed(api, buyer, (product, 2))
    spent = await api.post("/v1/transfers", by=seller, json={"to_user_id": buyer.id, "amount": "3.00"})
    assert spent.status_code == 201
    before = await api.everything()
    assert_problem(await refund(api, order_id, seller), 402, "insufficient_credits")
    assert await api.everything() == before


@pytest.mark.parametrize("status", ["pending", "awaiting_payment"])
async def test_an_order_that_is_not_paid_cannot_be_refunded(api: Api, status: str) -> None:
    buyer, seller, product = await api.shop(price="2.00", credits="1000" if status == "pending" else "0.01")
    placed = await api.place(buyer, (product, 2))
    assert placed["status"] == status
    assert_problem(await refund(api, placed["id"], seller), 409, "conflict")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"lines": []}, "#/lines"),
        ({"lines": [{"line": 0, "quantity": 1}]}, "#/lines/0/line"),
        ({"lines": [{"line": 1, "quantity": 0}]}, "#/lines/0/quantity"),
        ({"lines": [{"line": 1, "quantity": "1"}]}, "#/lines/0/quantity"),
        ({"lines": [{"line": 1}]}, "#/lines/0/quantity"),
        ({"amount": "1.00"}, "#/amount"),
    ],
)
async def test_a_malformed_refund_is_refused_and_names_the_field(api: Api, body: dict[str, Any], pointer: str) -> None:
    buyer, seller, product = await api.shop(price="2.00")
    order_id = await confirmed(api, buyer, (product, 2))
    reply = await api.post(f"/v1/orders/{order_id}/refunds", by=seller, json=body)
    assert_problem(reply, 422, "invalid_input", pointers=[pointer])


async def test_simultaneous_refunds_refund_no_piece_twice(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00", stock=10)
    order_id = await confirmed(api, buyer, (product, 5))

    replies = await asyncio.gather(*(refund(api, order_id, seller, (1, 2)) for _ in range(6)))

    assert sorted(reply.status_code for reply in replies) == [201, 201, 422, 422, 422, 422]
    assert await api.credits_of(buyer) == (Decimal(998), Decimal(0))
    assert await api.stock_of(product) == (10, 1)
    await api.assert_books_balance()


async def test_a_refund_with_the_same_key_takes_effect_once(api: Api) -> None:
    buyer, seller, product = await api.shop(price="2.00")
    order_id = await confirmed(api, buyer, (product, 5))
    body = {"lines": [{"line": 1, "quantity": 1}]}
    path = f"/v1/orders/{order_id}/refunds"
    first = await api.post(path, by=seller, key="once", json=body)
    second = await api.post(path, by=seller, key="once", json=body)
    assert (second.status_code, second.json()) == (201, first.json())
    assert second.headers["idempotency-replayed"] == "true"
    assert_problem(await api.post(path, by=seller, key=None, json=body), 400, "idempotency_key_invalid")
    assert await api.credits_of(buyer) == (Decimal(992), Decimal(0))
