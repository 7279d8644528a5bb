"""Relationships never load by themselves, and lists take as many statements for fifty rows as for five."""

import pytest
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import configure_mappers
from sqlmodel import SQLModel
from sqlmodel.main import default_registry

import services.models
from services.database import Database, DeclarativeTable
from services.orders import service
from services.query import PageQuery
from services.unit_of_work import UnitOfWork
from services.users.rights import Role
from tests.factories import count_statements, make_category, make_order, make_product, make_user


def test_every_relationship_of_every_model_refuses_to_load_lazily() -> None:
    configure_mappers()
    relationships = [
        (mapper.class_.__name__, relationship.key, relationship.lazy)
        for mapper in default_registry.mappers
        for relationship in mapper.relationships
    ]
    assert len(relationships) >= 10
    assert [one for one in relationships if one[2] not in ("raise", "raise_on_sql")] == []


def test_both_kinds_of_model_share_one_registry_and_one_metadata() -> None:
    assert DeclarativeTable.registry is default_registry
    assert DeclarativeTable.metadata is SQLModel.metadata
    mapped = {mapper.class_.__name__ for mapper in default_registry.mappers}
    assert mapped >= set(services.models.__all__) - {"metadata"}


async def test_a_relationship_that_was_not_asked_for_raises(database: Database) -> None:
    product = await make_product(database)
    async with UnitOfWork(database.write) as uow:
        found = await uow.products.get(product.id)
        assert found is not None
        with pytest.raises(InvalidRequestError, match="raise"):
            _ = found.seller


async def _orders(database: Database, number: int) -> int:
    """The number of statements to list and read this many orders with lines, buyers and products."""
    async with UnitOfWork(database.write) as uow:
        with count_statements(database.engine) as statements:
            page = await service.listed(uow, PageQuery(limit=number), with_items=True)
        assert len(page.data) == number
        for order in page.data:
            assert order.buyer.full_name
            assert order.items is not None
            assert [line.product.name for line in order.items]
            assert len(order.items) == 3
    return len(statements)


async def test_listing_fifty_orders_takes_as_many_statements_as_listing_five(database: Database) -> None:
    seller, category = await make_user(database), await make_category(database)
    products = [await make_product(database, seller=seller, category=category) for _ in range(6)]
    for number in range(51):
        buyer = await make_user(database, role=Role.customer)
        lines = [(products[(number + step) % 6], step + 1) for step in range(3)]
        await make_order(database, buyer=buyer, lines=lines)
    five, fifty = await _orders(database, 5), await _orders(database, 50)
    assert five == fifty == 2


async def test_listing_fifty_products_takes_as_many_statements_as_listing_five(database: Database) -> None:
    for _ in range(50):
        await make_product(database)

    async def statements(number: int) -> int:
        async with UnitOfWork(database.write) as uow:
            with count_statements(database.engine) as sent:
                page = await uow.products.page(PageQuery(limit=number))
            assert [(row.seller.full_name, row.category.name, row.inventory.on_hand) for row in page.data]
            assert len(page.data) == number
        return len(sent)

    assert await statements(5) == await statements(50) == 1
