"""The operators' recount finds orders that are not backed by credits."""

from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.orders.models import OrderStatus
from services.settings import Settings
from tests.factories import make_operator, make_order, make_product, make_user


async def recount(client: AsyncClient, settings: Settings, database: Database) -> dict[str, Any]:
    operator = await make_operator(database)
    headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(operator.id))}"}
    reply = await client.get("/v1/operations/books", headers=headers)
    assert reply.status_code == 200
    counted: dict[str, Any] = reply.json()
    return counted


async def write_order(database: Database, status: OrderStatus) -> None:
    """An order without a transfer; its stock is reserved according to its status."""
    buyer = await make_user(database, credits="100")
    product = await make_product(database)
    await make_order(database, buyer=buyer, lines=[(product, 2)], status=status)
    if status is OrderStatus.confirmed:
        async with database.engine.begin() as connection:
            reserve = text("UPDATE inventory SET reserved = 2 WHERE product_id = :id")
            await connection.execute(reserve, {"id": product.id})


@pytest.mark.parametrize("status", [OrderStatus.pending, OrderStatus.confirmed, OrderStatus.fulfilled])
async def test_an_order_without_a_payment_or_held_credits_is_found(
    client: AsyncClient, settings: Settings, database: Database, status: OrderStatus
) -> None:
    await write_order(database, status)
    counted = await recount(client, settings, database)
    assert (counted["mispaid_orders"], counted["balanced"]) == (1, False)
    others = {name: value for name, value in counted.items() if name not in ("mispaid_orders", "balanced")}
    assert all(float(value) == 0 for value in others.values()), "nothing else is wrong"


async def test_every_such_order_counts(client: AsyncClient, settings: Settings, database: Database) -> None:
    for status in OrderStatus:
        await write_order(database, status)
    counted = await recount(client, settings, database)
    assert (counted["mispaid_orders"], counted["balanced"]) == (3, False)


@pytest.mark.parametrize("status", [OrderStatus.awaiting_payment, OrderStatus.rejected, OrderStatus.cancelled])
async def test_an_order_that_needs_no_credits_is_not_reported(
    client: AsyncClient, settings: Settings, database: Database, status: OrderStatus
) -> None:
    await write_order(database, status)
    counted = await recount(client, settings, database)
    assert (counted["mispaid_orders"], counted["balanced"]) == (0, True)
