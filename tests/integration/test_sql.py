"""The plain SQL of the repositories fits the tables, and the indexes serve the queries they were made for."""

import importlib
import pkgutil

import asyncpg
from sqlalchemy import text

import services
from services.database import Database
from services.query import PageQuery
from services.reports.models import metadata as analytics_tables
from services.sql import Statement
from services.unit_of_work import UnitOfWork
from services.walks import EXAMINED
from tests.factories import count_statements, make_category, make_product, make_user


def statements() -> dict[str, Statement]:
    """Every statement of every module, by name; statements that other modules import are listed once."""
    found: dict[int, tuple[str, Statement]] = {}
    # A `__main__` is a program: it would run.
    modules = [name for _, name, _ in pkgutil.walk_packages(services.__path__, "services.") if "__main__" not in name]
    for module in modules:
        for name, value in vars(importlib.import_module(module)).items():
            for number, one in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(one, Statement):
                    found.setdefault(id(one), (f"{module}.{name}.{number}", one))
    return dict(found.values())


STATEMENTS = statements()


def test_the_statements_are_found() -> None:
    modules = {name.split(".")[1] for name in STATEMENTS}
    assert modules >= {"catalog", "orders", "credits", "outbox", "idempotency", "audit", "transaction"}
    assert len(STATEMENTS) >= 100


async def test_every_statement_names_tables_columns_and_types_that_exist(
    database: Database, analytics_url: str
) -> None:
    """PostgreSQL parses and plans each against the migrated tables, and can infer the type of every parameter."""
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    primary, analytics = await asyncpg.connect(url), await asyncpg.connect(analytics_url)
    try:
        for name, statement in STATEMENTS.items():
            of_analytics = any(table in statement.sql for table in analytics_tables.tables)
            try:
                prepared = await (analytics if of_analytics else primary).prepare(statement.sql)
            except asyncpg.PostgresError as error:
                raise AssertionError(f"{name}: {error}") from error
            assert len(prepared.get_parameters()) == len(statement.parameters), name
    finally:
        await primary.close()
        await analytics.close()


async def plan(database: Database, sent: str, parameters: tuple[object, ...], *dear: str) -> str:
    """How PostgreSQL would run a statement that SQLAlchemy sent, with some kinds of plans made expensive."""
    async with database.engine.connect() as connection:
        for way in ("enable_seqscan", *dear):
            await connection.execute(text(f"SET LOCAL {way} = off"))
        rows = await connection.exec_driver_sql(f"EXPLAIN {sent}", parameters)
        return "\n".join(row[0] for row in rows)


async def _fill(database: Database, number: int) -> int:
    """Make products in ten categories; return the id of one category."""
    seller = await make_user(database)
    categories = [(await make_category(database)).id for _ in range(10)]
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO products (seller_id, category_id, sku, name, price)"
                " SELECT :seller, (CAST(:categories AS bigint[]))[1 + n % 10], 'S' || n, md5(n::text), 1 + n % 100"
                " FROM generate_series(1, :number) AS n"
            ),
            {"seller": seller.id, "categories": categories, "number": number},
        )
        await connection.execute(text("INSERT INTO inventory (product_id, on_hand) SELECT id, 1 FROM products"))
    async with database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text("VACUUM ANALYZE products"))
    return categories[0]


async def test_a_search_by_similar_words_is_answered_by_the_trigram_index(database: Database) -> None:
    await _fill(database, 2100)
    wanted = await make_product(database, name="Brass lantern")
    async with UnitOfWork(database.write) as uow:
        with count_statements(database.engine) as sent:
            page = await uow.products.page(PageQuery(limit=10), "lanten")
    assert [product.id for product in page.data] == [wanted.id]
    # It asks the index, since it has not found ten rows among those that it may examine.
    (statement,) = [one for one in sent.statements if f"LIMIT {EXAMINED + 1}" in one and "AS near" not in one]
    assert "ix_products_name_trgm" in await plan(database, statement, ("lanten",), "enable_seqscan")


async def test_a_filter_by_category_and_price_is_answered_by_the_composite_index(database: Database) -> None:
    category_id = await _fill(database, 2000)
    filters = [f"category_id:eq:{category_id}", "price:gte:50", "price:lt:60"]
    async with UnitOfWork(database.write) as uow:
        with count_statements(database.engine) as sent:
            page = await uow.products.page(PageQuery(filters, "price", limit=10))
    assert len(page.data) == 10
    # The first asks for a plan for these values.
    _, statement = sent.statements
    described = await plan(database, statement, (50, 60, category_id, 11), "enable_sort")
    assert "ix_products_active_category_id_price_id" in described, described
