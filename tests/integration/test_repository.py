"""`Repository[Model]`: every method, soft delete and versions."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from pydantic import BaseModel
from sqlalchemy import event, text
from sqlalchemy.orm import joinedload
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import col

from services.catalog.models import Category, Product
from services.catalog.repository import CategoryRepository, ProductRepository
from services.catalog.schemas import CategoryCreate, ProductUpdate
from services.database import Database
from services.query import PageQuery
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.repository import UserRepository
from tests.factories import count_statements, make_category, make_product, make_user


@pytest.fixture
async def uow(database: Database) -> AsyncIterator[UnitOfWork]:
    async with UnitOfWork(database.write) as opened:
        yield opened


async def test_get_finds_by_key_or_returns_none(database: Database, uow: UnitOfWork) -> None:
    category = await make_category(database, "Lamps")
    found = await uow.categories.get(category.id)
    assert found is not None
    assert found.name == "Lamps"
    assert await uow.categories.get(2**62) is None


async def test_get_loads_what_its_options_say(database: Database, uow: UnitOfWork) -> None:
    product = await make_product(database)
    found = await uow.products.get(product.id, options=[joinedload(Product.category)])
    assert found is not None
    assert found.category.id == product.category_id


async def test_get_many_leaves_out_missing_rows(database: Database, uow: UnitOfWork) -> None:
    ids = [(await make_category(database)).id for _ in range(3)]
    assert {found.id for found in await uow.categories.get_many([*ids[:2], 2**62])} == set(ids[:2])
    assert await uow.categories.get_many([]) == []


async def test_count_and_exists_take_conditions(database: Database, uow: UnitOfWork) -> None:
    for name in ("Lamps", "Chairs"):
        await make_category(database, name)
    assert await uow.categories.count() == 2
    assert await uow.categories.count(col(Category.name) == "Lamps") == 1
    assert await uow.categories.exists(col(Category.name) == "Lamps")
    assert not await uow.categories.exists(col(Category.name) == "Tables")


async def test_create_reads_key_and_defaults_back(uow: UnitOfWork) -> None:
    created = await uow.categories.create(CategoryCreate(name="Lamps"))
    assert created.id > 0
    assert created.created_at is not None
    assert await uow.categories.exists(col(Category.id) == created.id)


async def test_bulk_create_keeps_the_order_and_takes_few_statements(database: Database, uow: UnitOfWork) -> None:
    with count_statements(database.engine) as statements:
        rows = await uow.categories.bulk_create([CategoryCreate(name=f"Shelf {n:03}") for n in range(300)])
    assert [row.name for row in sorted(rows, key=lambda row: row.id)] == [f"Shelf {n:03}" for n in range(300)]
    assert [row.name for row in rows] == [f"Shelf {n:03}" for n in range(300)]
    assert len(statements) == 1


async def test_update_sets_only_what_was_given(database: Database, uow: UnitOfWork) -> None:
    made = await make_product(database, name="Lamp", price="3.00")
    product = await uow.products.get(made.id)
    assert product is not None
    await uow.products.update(product, ProductUpdate(price=Decimal("4.50")))
    await uow.commit()
    async with database.write() as session:
        found = await session.get(Product, made.id)
    assert found is not None
    assert (found.name, found.price, found.version) == ("Lamp", Decimal("4.50"), 2)


async def test_a_bulk_update_increments_versions_so_that_a_stale_edit_fails(database: Database) -> None:
    products = [await make_product(database) for _ in range(3)]
    async with UnitOfWork(database.write) as editor, UnitOfWork(database.write) as bulk:
        held = await editor.products.get(products[0].id)
        assert held is not None
        assert await bulk.products.bulk_update([p.id for p in products[:2]], is_active=False) == 2
        await bulk.commit()
        held.name = "Lost update"
        with pytest.raises(StaleDataError):
            await editor.commit()
    async with UnitOfWork(database.write) as uow:
        versions = {
            p.id: (p.version, p.is_active, p.name) for p in await uow.products.get_many([p.id for p in products])
        }
    assert [versions[p.id][:2] for p in products] == [(2, False), (2, False), (1, True)]
    assert versions[products[0].id][2] == products[0].name


async def test_a_bulk_update_shows_on_objects_that_were_read(database: Database, uow: UnitOfWork) -> None:
    made = await make_product(database)
    product = await uow.products.get(made.id)
    await uow.products.bulk_update([made.id], is_active=False)
    assert product is not None
    assert (product.is_active, product.version) == (False, 2)
    product.name = "Edited after"
    await uow.commit()


async def test_delete_removes_the_row(database: Database, uow: UnitOfWork) -> None:
    category = await uow.categories.get((await make_category(database)).id)
    assert category is not None
    await uow.categories.delete(category)
    await uow.commit()
    assert await uow.categories.count() == 0


async def test_soft_deleted_rows_are_hidden_from_every_read_until_restored(database: Database, uow: UnitOfWork) -> None:
    gone, kept = await make_user(database), await make_user(database)
    user = await uow.users.get(gone.id)
    assert user is not None
    await uow.users.soft_delete(user)
    await uow.commit()

    async def seen() -> list[int]:
        return [one.id for one in (await uow.users.page(PageQuery(limit=10))).data]

    assert await uow.users.get(gone.id) is None
    assert await uow.users.get(gone.id, lock=True) is None
    assert [one.id for one in await uow.users.get_many([gone.id, kept.id])] == [kept.id]
    assert await uow.users.count() == 1
    assert not await uow.users.exists(col(User.id) == gone.id)
    assert await seen() == [kept.id]
    assert [one.id async for one in uow.users.stream()] == [kept.id]
    assert await uow.users.by_email(gone.email) is None
    assert await uow.users.email_taken(gone.email)
    assert await uow.users.bulk_update([gone.id, kept.id], full_name="Changed") == 1

    deleted = await uow.users.get_deleted(gone.id)
    assert deleted is not None
    assert deleted.full_name != "Changed"
    assert await uow.users.get_deleted(kept.id) is None
    await uow.users.restore(deleted)
    await uow.commit()
    assert await uow.users.count() == 2
    assert await seen() == [gone.id, kept.id]


async def test_a_lock_makes_a_second_session_wait_and_then_see_the_new_values(database: Database) -> None:
    category = await make_category(database, "Old")
    async with UnitOfWork(database.write) as first, UnitOfWork(database.write) as second:
        held = await first.categories.get(category.id, lock=True)
        assert held is not None
        # The second session has read the row before: the lock reads it again.
        assert await second.categories.get(category.id) is not None
        waiting = asyncio.create_task(second.categories.get(category.id, lock=True))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        held.name = "New"
        await first.commit()
        found = await asyncio.wait_for(waiting, 5)
        assert found is not None
        assert found.name == "New"


async def test_a_lock_lets_rows_that_refer_to_it_be_inserted(database: Database) -> None:
    user = await make_user(database)
    category = await make_category(database)
    async with UnitOfWork(database.write) as first:
        assert await first.users.get(user.id, lock=True) is not None
        await asyncio.wait_for(make_product(database, seller=user, category=category), 5)


async def test_a_stream_fetches_in_batches_through_a_server_side_cursor(database: Database, uow: UnitOfWork) -> None:
    await uow.categories.bulk_create([CategoryCreate(name=f"Shelf {n:04}") for n in range(1000)])
    await uow.commit()
    async with UnitOfWork(database.write) as reader:
        stream = reader.categories.stream(batch=50)
        first = await anext(stream)
        in_memory = len(reader.session.identity_map)
        names = [first.name] + [row.name async for row in stream]
    assert names == [f"Shelf {n:04}" for n in range(1000)]
    # asyncpg reads ahead in portions of its cursor; a client-side result would hold the thousand.
    assert in_memory <= 50


async def test_a_stream_keeps_few_rows_in_memory_whatever_their_number(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO categories (name) SELECT 'Shelf ' || n FROM generate_series(1, 20000) AS n")
        )
    loaded = 0

    def count(_target: object, _context: object) -> None:
        nonlocal loaded
        loaded += 1

    event.listen(Category, "load", count)
    try:
        async with UnitOfWork(database.write) as reader:
            stream = reader.categories.stream(col(Category.id) > 0, batch=100)
            for _ in range(250):
                await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert loaded <= 300
            # The cursor is closed: the connection can be used for something else.
            assert await reader.categories.count() == 20000
    finally:
        event.remove(Category, "load", count)


class _Nothing(BaseModel):
    """Changes nothing."""


async def test_an_update_without_changes_writes_nothing(database: Database, uow: UnitOfWork) -> None:
    product = await uow.products.get((await make_product(database)).id)
    assert product is not None
    with count_statements(database.engine) as statements:
        await uow.products.update(product, _Nothing())
    assert len(statements) == 0
    assert product.version == 1


def test_each_repository_has_the_model_it_says() -> None:
    assert (CategoryRepository.model, ProductRepository.model, UserRepository.model) == (Category, Product, User)
