"""Optimistic locking with two real sessions."""

import asyncio

import pytest
from sqlalchemy.orm.exc import StaleDataError

from services.catalog.models import Product
from services.database import Database
from tests.factories import make_product


async def test_the_second_of_two_writers_finds_its_copy_stale(database: Database) -> None:
    product_id = (await make_product(database, name="Original")).id
    async with database.write() as first, database.write() as second:
        mine, theirs = await first.get(Product, product_id), await second.get(Product, product_id)
        assert mine is not None
        assert theirs is not None
        mine.name = "First"
        await first.commit()
        theirs.name = "Second"
        with pytest.raises(StaleDataError):
            await second.commit()
    async with database.write() as session:
        found = await session.get(Product, product_id)
    assert found is not None
    assert (found.name, found.version) == ("First", 2)


async def test_a_writer_that_waited_for_another_finds_its_copy_stale(database: Database) -> None:
    product_id = (await make_product(database)).id
    async with database.write() as first, database.write() as second:
        mine, theirs = await first.get(Product, product_id), await second.get(Product, product_id)
        assert mine is not None
        assert theirs is not None
        mine.name = "First"
        await first.flush()
        theirs.name = "Second"
        waiting = asyncio.create_task(second.flush())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await first.commit()
        with pytest.raises(StaleDataError):
            await asyncio.wait_for(waiting, 5)


async def test_of_many_simultaneous_writers_each_edit_is_kept_or_refused(database: Database) -> None:
    product_id = (await make_product(database)).id

    async def edit(number: int) -> bool:
        async with database.write() as session:
            product = await session.get(Product, product_id)
            assert product is not None
            await asyncio.sleep(0)
            product.description = f"{product.description} {number}"
            try:
                await session.commit()
            except StaleDataError:
                return False
            return True

    kept = sum(await asyncio.gather(*[edit(number) for number in range(12)]))
    async with database.write() as session:
        found = await session.get(Product, product_id)
    assert found is not None
    assert kept >= 1
    assert found.version == 1 + kept
    assert len(found.description.split()) == kept, "no edit that succeeded was lost"
