"""Sellers who leave: their products can no longer be ordered, however many there are."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text

from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.factories import CONFIRMED, make_category, make_operator, make_product, make_user

MANY = 33_000
"""More than the 32,767 parameters that one statement of PostgreSQL's protocol can have."""

OFFER = text("""
    INSERT INTO products (seller_id, category_id, sku, name, price)
    SELECT :seller_id, :category_id, number::text, 'Lamp', 1 FROM generate_series(1, :many) AS number
""")
COUNT = "SELECT count(*) FROM products WHERE seller_id = :id AND is_active = :active AND version = :version"


async def run(api: Api, statement: str, **parameters: object) -> None:
    async with api.database.engine.begin() as connection:
        await connection.execute(text(statement), parameters)


async def deactivate(api: Api, seller: User) -> None:
    operator = await make_operator(api.database)
    reply = await api.patch(f"/v1/users/{seller.id}", by=operator, version=1, json={"is_active": False})
    assert reply.status_code == 200


async def delete(api: Api, seller: User) -> None:
    assert (await api.delete("/v1/users/me", by=seller, json=CONFIRMED)).status_code == 204


async def test_a_seller_of_33000_products_can_be_deleted_and_all_of_them_are_off_sale(api: Api) -> None:
    seller = await make_user(api.database)
    gone_before = await make_product(api.database, seller=seller, is_active=False)
    other = await make_product(api.database)
    category = await make_category(api.database)
    async with api.database.engine.begin() as connection:
        await connection.execute(OFFER, {"seller_id": seller.id, "category_id": category.id, "many": MANY})

    async with asyncio.timeout(60):
        await delete(api, seller)

    assert await api.scalar(COUNT, id=seller.id, active=False, version=2) == MANY
    assert await api.scalar(COUNT, id=seller.id, active=False, version=1) == 1, f"{gone_before.id} was off sale before"
    assert await api.scalar(COUNT, id=seller.id, active=True, version=1) == 0
    assert await api.scalar(COUNT, id=other.seller_id, active=True, version=1) == 1


@pytest.mark.parametrize("leave", [deactivate, delete])
@pytest.mark.parametrize("still_active", [False, True], ids=["as it was left", "row active"])
async def test_nothing_can_be_ordered_from_a_seller_who_has_left(
    api: Api, leave: Callable[[Api, User], Awaitable[None]], still_active: bool
) -> None:
    buyer, seller, product = await api.shop()
    stays = await make_product(api.database)
    await leave(api, seller)
    if still_active:
        await run(api, "UPDATE products SET is_active = true WHERE id = :id", id=product.id)
    before = await api.everything()

    refused = await api.post("/v1/orders", by=buyer, json=order_of((stays, 1), (product, 1)))

    assert_problem(refused, 422, "invalid_input", pointers=["#/items/1/product_id"])
    assert await api.everything() == before
    await api.place(buyer, (stays, 1))


async def test_an_order_from_a_seller_who_leaves_afterwards_is_carried_out_and_paid(api: Api) -> None:
    buyer, seller, product = await api.shop(price="10.00")
    placed = await api.place(buyer, (product, 2))
    await deactivate(api, seller)

    await api.process()

    assert await api.status_of(placed["id"]) == "confirmed"
    assert (await api.credits_of(seller))[0] == 20
    await api.assert_books_balance()
