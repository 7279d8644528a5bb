"""The number of orders by status is counted while they are few, and estimated when they are many."""

import pytest
from sqlalchemy import text

from services.database import Database
from services.orders.models import OrderStatus
from services.totals import Precision
from services.unit_of_work import UnitOfWork
from tests.factories import make_user

FILL = text("""
    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT gen_random_uuid(), :buyer_id, CASE WHEN n % 4 = 0 THEN 'rejected' ELSE 'fulfilled' END, 1, 1
    FROM generate_series(1, :number) AS n
""")


async def test_few_orders_are_counted_and_many_are_estimated(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer = await make_user(database)
    async with database.engine.begin() as connection:
        await connection.execute(FILL, {"buyer_id": buyer.id, "number": 400})
        await connection.execute(text("ANALYZE orders"))
    async with UnitOfWork(database.read) as uow:
        counts, precision = await uow.orders.number_by_status()
        assert (counts[OrderStatus.rejected], counts[OrderStatus.fulfilled]) == (100, 300)
        assert (counts[OrderStatus.pending], precision) == (0, Precision.exact)
        monkeypatch.setattr("services.orders.repository.MAX_COUNTED", 399)
        counts, precision = await uow.orders.number_by_status()
    assert precision is Precision.estimate
    assert counts[OrderStatus.fulfilled] == pytest.approx(300, rel=0.1)
