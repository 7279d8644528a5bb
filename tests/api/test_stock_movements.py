"""Every change of the pieces on hand leaves a movement that says why, and the movements sum to what is on hand."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from services.catalog.models import Product
from services.users.models import User
from tests.api.audited import corrupt, run_audit
from tests.api.client import Api
from tests.factories import make_product
from tests.roles import superuser_of

OLD_RELEASE = "waybill-api"
"""The name under which processes of the release before are connected."""


async def movements(api: Api, product_id: int) -> list[tuple[str, int, UUID | None]]:
    """Kind, pieces and order of each movement of a product, oldest first; they sum to what is on hand."""
    statement = "SELECT kind, pieces, order_id FROM stock_movements WHERE product_id = :id ORDER BY id"
    async with api.database.engine.connect() as connection:
        rows = (await connection.execute(text(statement), {"id": product_id})).all()
    on_hand = await api.scalar("SELECT on_hand FROM inventory WHERE product_id = :id", id=product_id)
    assert sum(row.pieces for row in rows) == on_hand
    return [(row.kind, row.pieces, row.order_id) for row in rows]


async def kinds(api: Api) -> set[str]:
    """The kinds of difference that an audit finds."""
    return {difference.kind.value for difference in (await run_audit(api.database))[1]}


async def change(api: Api, seller: User, product: Product, pieces: int) -> None:
    reply = await api.post(f"/v1/products/{product.id}/stock", by=seller, json={"change": pieces})
    assert reply.status_code == 200, reply.text


async def test_a_seller_creates_adds_removes_and_counts(api: Api) -> None:
    _, seller, product = await api.shop(stock=7)
    await change(api, seller, product, 4)
    await change(api, seller, product, -2)
    body: dict[str, Any] = {"category_id": product.category_id, "price": "1.00", "description": ""}
    wanted = [
        {**body, "sku": product.sku, "name": product.name, "stock": 20},
        {**body, "sku": "new", "name": "New", "stock": 3},
        {**body, "sku": "empty", "name": "Empty", "stock": 0},
    ]
    for _ in range(2):
        reply = await api.request("PUT", "/v1/products", by=seller, json={"products": wanted})
        assert reply.status_code == 200, reply.text
    _, new, empty = (one["id"] for one in reply.json()["products"])

    assert await movements(api, product.id) == [
        ("opening", 7, None), ("stocked", 4, None), ("stocked", -2, None), ("stocked", 11, None)
    ]  # fmt: skip
    assert await movements(api, new) == [("opening", 3, None)]
    assert await movements(api, empty) == []
    assert await kinds(api) == set()


async def test_pieces_of_an_order_leave_and_come_back_with_its_id(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=10)
    placed = await api.place(buyer, (product, 2), (product, 3))
    await api.process()
    path, order_id = f"/v1/orders/{placed['id']}", UUID(placed["id"])
    one = {"reason": "broken", "lines": [{"line": 1, "quantity": 1}]}

    assert (await api.post(f"{path}/refunds", by=seller, json=one)).status_code == 201
    assert await movements(api, product.id) == [("opening", 10, None)], "reserved pieces are still on hand"
    assert (await api.post(f"{path}/fulfil", by=seller, json={})).status_code == 200
    assert (await api.post(f"{path}/refunds", by=seller, json=one)).status_code == 201

    assert await movements(api, product.id) == [
        ("opening", 10, None), ("shipped", -4, order_id), ("returned", 1, order_id)
    ]  # fmt: skip
    assert await api.stock_of(product) == (7, 0)
    assert await kinds(api) == set()


async def test_a_cancelled_order_moves_nothing(api: Api) -> None:
    buyer, _, product = await api.shop(stock=10)
    placed = await api.place(buyer, (product, 2))
    await api.process()
    assert (await api.post(f"/v1/orders/{placed['id']}/cancel", by=buyer, json={})).status_code == 200
    assert await movements(api, product.id) == [("opening", 10, None)]
    assert await api.stock_of(product) == (10, 0)


def update(api: Api, application: str, statement: str) -> None:
    """Run it on a connection with this name, as the owner of the tables."""
    with psycopg.connect(superuser_of(api.settings), application_name=application) as connection:
        assert connection.execute(statement.encode()).rowcount == 1


async def test_a_change_of_the_release_before_gets_its_movement_from_a_trigger(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=10)
    placed = await api.place(buyer, (product, 2))
    await api.process()
    await api.post(f"/v1/orders/{placed['id']}/fulfil", by=seller, json={})
    # It takes the pieces back after a refund; the order is left without a movement for that.
    update(api, OLD_RELEASE, f"UPDATE inventory SET on_hand = on_hand + 1 WHERE product_id = {product.id}")
    update(api, OLD_RELEASE, f"UPDATE inventory SET reserved = reserved WHERE product_id = {product.id}")

    assert [(kind, pieces) for kind, pieces, _ in await movements(api, product.id)] == [
        ("opening", 10), ("shipped", -2), ("unrecorded", 1)
    ]  # fmt: skip
    assert await kinds(api) == set()
    # What it did with the order is not known, so the order's own movements are not compared with its lines.
    await corrupt(
        api.database, "UPDATE stock_movements SET pieces = -1 WHERE kind = 'shipped'",
        "UPDATE inventory SET on_hand = on_hand + 1 WHERE product_id = :id", id=product.id,
    )  # fmt: skip
    assert await kinds(api) == set()


async def test_a_change_by_hand_is_found_until_it_is_undone(api: Api) -> None:
    product = await make_product(api.database, stock=10)
    statement = f"UPDATE inventory SET on_hand = on_hand + {{}} WHERE product_id = {product.id}"
    update(api, "psql", statement.format(5))
    assert (await movements(api, product.id))[1:] == [("by_hand", 5, None)]

    _, found = await run_audit(api.database)

    assert [difference.message for difference in found] == [
        f"the pieces of product {product.id} on hand were changed by 5 outside Waybill"
    ]
    update(api, "psql", statement.format(-5))
    assert await kinds(api) == set()


async def test_a_change_by_hand_is_noted_beside_the_stock_whatever_the_search_path(api: Api) -> None:
    product = await make_product(api.database, stock=10)
    schema = await api.scalar("SELECT current_schema()")
    with psycopg.connect(superuser_of(api.settings), options="-c search_path=pg_temp") as connection:
        # As another tenant's table would be found.
        connection.execute("CREATE TEMP TABLE stock_movements (product_id bigint, kind text, pieces bigint)")
        connection.execute(f"UPDATE {schema}.inventory SET on_hand = 15 WHERE product_id = {product.id}".encode())
    assert (await movements(api, product.id))[1:] == [("by_hand", 5, None)]


@pytest.mark.parametrize("raised", [True, False], ids=["as if recorded", "without the trigger"])
async def test_pieces_without_a_movement_are_found(api: Api, raised: bool) -> None:
    product = await make_product(api.database, stock=10)
    if raised:
        statement = "UPDATE inventory SET on_hand = on_hand + 5, recorded = recorded + 1 WHERE product_id = "
        update(api, "psql", f"{statement}{product.id}")
    else:
        await corrupt(api.database, "UPDATE inventory SET on_hand = on_hand + 5 WHERE product_id = :id", id=product.id)

    _, found = await run_audit(api.database)

    assert [difference.message for difference in found] == [
        f"product {product.id} has 15 pieces on hand, but its movements sum to 10"
    ]
