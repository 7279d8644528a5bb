"""The factories' rows keep the product's own rules, and the recorder counts what is sent."""

from decimal import Decimal

from httpx2 import AsyncClient
from sqlalchemy import text

from services.database import Database
from services.orders.models import OrderStatus
from services.unit_of_work import OpenUnitOfWork
from tests.factories import count_statements, make_operator, make_order, make_product, make_user


async def test_topped_up_users_leave_the_books_balanced(database: Database) -> None:
    await make_user(database, credits="12.50")
    await make_user(database, credits="7.00")

    async with database.engine.connect() as connection:
        total = (await connection.execute(text("SELECT sum(amount) FROM entries"))).scalar_one()
        issued = (await connection.execute(text("SELECT posted FROM accounts WHERE user_id IS NULL"))).scalar_one()
        unlike = await connection.execute(
            text(
                "SELECT id FROM accounts WHERE posted <> (SELECT coalesce(sum(amount), 0) FROM entries"
                " WHERE account_id = accounts.id) OR version <> (SELECT count(*) FROM entries"
                " WHERE account_id = accounts.id)"
            )
        )
    assert total == 0
    assert issued == Decimal("-19.50")
    assert unlike.all() == []


async def test_rows_are_seen_by_other_transactions(database: Database, uow: OpenUnitOfWork) -> None:
    operator = await make_operator(database)
    product = await make_product(database, price="2.50", stock=3)
    order = await make_order(database, buyer=operator, lines=[(product, 2), (product, 1)])

    async with uow() as unit:
        found = await unit.orders.get(order.id)
    assert found is not None
    assert (found.status, found.total, found.item_count) == (OrderStatus.pending, Decimal("7.50"), 2)


async def test_statements_are_counted_inside_the_block_only(database: Database) -> None:
    async with database.engine.connect() as connection:
        with count_statements(database.engine) as statements:
            await connection.execute(text("SELECT 1"))
            await connection.execute(text("SELECT 2"))
        await connection.execute(text("SELECT 3"))
    assert statements.statements == ["SELECT 1", "SELECT 2"]
    assert len(statements) == 2


async def test_client_speaks_to_the_application_on_this_tests_database(client: AsyncClient, database: Database) -> None:
    await make_product(database, name="Seen through the API")
    reply = await client.get("/v1/products")
    assert reply.status_code == 200
    assert [product["name"] for product in reply.json()["data"]] == ["Seen through the API"]
