"""`Repository[Model]`: every method, soft delete and versions."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import joinedload
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import col
from sqlmodel.main import default_registry

from services.catalog.models import Category, Product
from services.catalog.repository import CategoryRepository, ProductRepository
from services.catalog.schemas import CategoryCreate, ProductUpdate
from services.database import Database
from services.fields import Versioned
from services.query import PageQuery
from services.repository import Lock
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.repository import USERS, UserRepository
from services.users.rights import Role
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
    found = await uow.products.get(product.id, options=[joinedload(Product.category)])  # type: ignore[arg-type]
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
        assert await bulk.products.bulk_update({p.id: {"is_active": False} for p in products[:2]}) == 2
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
    await uow.products.bulk_update({made.id: {"is_active": False}})
    assert product is not None
    assert (product.is_active, product.version) == (False, 2)
    product.name = "Edited after"
    await uow.commit()


async def test_soft_deleted_rows_are_hidden_from_every_read_until_restored(database: Database, uow: UnitOfWork) -> None:
    gone, kept = await make_user(database), await make_user(database)
    user = await uow.users.get(gone.id)
    assert user is not None
    await uow.users.soft_delete(user)
    await uow.commit()

    async def seen() -> list[int]:
        return [one.id for one in (await uow.users.list_page(USERS, PageQuery(limit=10))).data]

    assert await uow.users.get(gone.id) is None
    assert await uow.users.get(gone.id, lock=Lock.change) is None
    assert [one.id for one in await uow.users.get_many([gone.id, kept.id])] == [kept.id]
    assert await uow.users.count() == 1
    assert not await uow.users.exists(col(User.id) == gone.id)
    assert await seen() == [kept.id]
    assert [row[0] async for batch in uow.users.stream([]) for row in batch] == [kept.id]
    assert await uow.users.by_email(gone.email) is None
    assert await uow.users.email_taken(gone.email)
    assert await uow.users.bulk_update({one.id: {"full_name": "Changed"} for one in (gone, kept)}) == 1

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
        held = await first.categories.get(category.id, lock=Lock.change)
        assert held is not None
        # The second session has read the row before: the lock reads it again.
        assert await second.categories.get(category.id) is not None
        waiting = asyncio.create_task(second.categories.get(category.id, lock=Lock.change))
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
        assert await first.users.get(user.id, lock=Lock.change) is not None
        await asyncio.wait_for(make_product(database, seller=user, category=category), 5)


async def test_a_stream_reads_one_batch_at_a_time_in_the_order_of_the_keys(database: Database, uow: UnitOfWork) -> None:
    await uow.categories.bulk_create([CategoryCreate(name=f"Shelf {n:04}") for n in range(1000)])
    await uow.commit()
    with count_statements(database.engine) as statements:
        batches = []
        async for batch in uow.categories.stream([col(Category.name)], col(Category.name) >= "Shelf 0100", batch=400):
            batches.append([name for _, name in batch])
            assert len(statements) == len(batches)
    assert [len(batch) for batch in batches] == [400, 400, 100]
    assert [name for batch in batches for name in batch] == [f"Shelf {n:04}" for n in range(100, 1000)]
    assert not uow.session.identity_map, "no objects are made"


async def test_between_two_batches_of_a_stream_the_transaction_may_end(database: Database, uow: UnitOfWork) -> None:
    await uow.categories.bulk_create([CategoryCreate(name=f"Shelf {n}") for n in range(6)])
    await uow.commit()
    names = []
    async for batch in uow.categories.stream([col(Category.name)], batch=4):
        await uow.rollback()
        assert database.engine.pool.checkedout() == 0, "a slow reader holds no connection"  # type: ignore[attr-defined]
        names += [name for _, name in batch]
        if len(names) == 4:
            async with UnitOfWork(database.write) as other:
                await other.categories.create(CategoryCreate(name="Shelf 6"))
                await other.commit()
    assert names == [f"Shelf {n}" for n in range(7)]


class _Nothing(BaseModel):
    """Changes nothing."""


async def test_an_update_without_changes_writes_nothing(database: Database, uow: UnitOfWork) -> None:
    product = await uow.products.get((await make_product(database)).id)
    assert product is not None
    with count_statements(database.engine) as statements:
        assert not await uow.products.update(product, _Nothing())
        assert not await uow.products.update(product, ProductUpdate(name=product.name))
    assert len(statements) == 0
    assert product.version == 1


class _Unknown(BaseModel):
    """Has a field that categories and products do not have."""

    name: str = "Lamp"
    colour: str = "red"


async def test_a_field_that_the_table_does_not_have_is_never_lost_in_silence(
    database: Database, uow: UnitOfWork
) -> None:
    category = await uow.categories.get((await make_category(database)).id)
    assert category is not None
    with pytest.raises(TypeError, match="Category cannot store colour of _Unknown"):
        await uow.categories.create(_Unknown())
    with pytest.raises(TypeError, match="Category cannot store colour of _Unknown"):
        await uow.categories.update(category, _Unknown(colour="blue"))
    assert (await uow.categories.create(_Unknown(), without={"colour"})).name == "Lamp"


async def test_what_goes_into_a_row_is_validated_whatever_was_validated_before(
    database: Database, uow: UnitOfWork
) -> None:
    product = await uow.products.get((await make_product(database)).id)
    assert product is not None
    with pytest.raises(ValidationError):
        await uow.categories.create(CategoryCreate.model_construct(name=" "))
    for wrong in ({"price": Decimal(-1)}, {"price": Decimal("1.005")}, {"name": "x" * 201}, {"is_active": "maybe"}):
        with pytest.raises(ValidationError):
            await uow.products.update(product, **wrong)
        with pytest.raises(ValidationError):
            await uow.products.bulk_update({product.id: wrong})
    await uow.products.update(product, price="7.5")
    assert product.price == Decimal("7.50"), "a value that fits after conversion is converted"


async def test_a_bulk_update_gives_each_row_its_own_values(database: Database, uow: UnitOfWork) -> None:
    one, other = await make_product(database), await make_product(database)
    await uow.products.bulk_update(
        {one.id: {"name": "One", "price": "1.10"}, other.id: {"name": "Other", "price": "2.20"}}
    )
    found = [(row.name, row.price, row.version) for row in await uow.products.get_many([one.id, other.id])]
    assert found == [("One", Decimal("1.10"), 2), ("Other", Decimal("2.20"), 2)]
    assert await uow.products.bulk_update({}) == 0
    await uow.users.bulk_update({one.seller_id: {"role": Role.operator}})
    seller = await uow.users.get(one.seller_id)
    assert seller is not None
    assert (seller.role, seller.version) == (Role.operator, 2)


async def test_an_update_through_a_stale_copy_fails_for_each_versioned_table(database: Database) -> None:
    made: dict[str, Any] = {
        "users": await make_user(database),
        "categories": await make_category(database),
        "products": await make_product(database),
    }
    assert {kind.__name__ for kind in _tables_with_versions()} == {type(row).__name__ for row in made.values()}
    for name, row in made.items():
        change = {"full_name": "New"} if name == "users" else {"name": "New"}
        async with UnitOfWork(database.write) as first, UnitOfWork(database.write) as second:
            held = await getattr(first, name).get(row.id)
            await getattr(second, name).update(await getattr(second, name).get(row.id), **change)
            await second.commit()
            with pytest.raises(StaleDataError):
                await getattr(first, name).soft_delete(held)
        async with UnitOfWork(database.write) as uow:
            assert (await getattr(uow, name).get(row.id)).version == 2


def _tables_with_versions() -> list[type[Versioned]]:
    return [mapper.class_ for mapper in default_registry.mappers if issubclass(mapper.class_, Versioned)]


async def test_a_lock_that_keeps_a_row_is_shared_but_excludes_changes(database: Database) -> None:
    category = await make_category(database)
    async with UnitOfWork(database.write) as first, UnitOfWork(database.write) as second:
        assert await first.categories.get(category.id, lock=Lock.keep)
        assert await asyncio.wait_for(second.categories.get(category.id, lock=Lock.keep), 5)
        async with UnitOfWork(database.write) as third:
            waiting = asyncio.create_task(third.categories.get(category.id, lock=Lock.change))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await first.rollback()
            await second.rollback()
            assert await asyncio.wait_for(waiting, 5)


def test_each_repository_has_the_model_it_says() -> None:
    assert (CategoryRepository.model, ProductRepository.model, UserRepository.model) == (Category, Product, User)
