"""Runs the consumer of reports as a worker does, writes events for it, and reads what it left behind."""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from uuid_utils.compat import uuid7

from services.analytics import Analytics
from services.database import Database
from services.orders.events import OrderConfirmed, OrderPlaced
from services.outbox.consumers import claim
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag, Lease
from services.outbox.retention.repository import add_partitions
from services.outbox.sink import SinkConsumer, run
from services.reports import service
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.factories import make_order, make_product, make_user
from tests.roles import OWNER

TABLES = ("report_days", "report_waits")

Consumer = SinkConsumer[UnitOfWork, Any, Any]


class Reporter:
    """One worker's consumer of reports."""

    def __init__(self, database: Database, analytics: Analytics, **changes: Any) -> None:
        self.database = database
        self.analytics = analytics
        self.owner: UUID = uuid4()
        self.consumer: Consumer = replace(service.consumer(analytics.open), **changes)
        self.lease: Lease | None = None

    def open(self) -> UnitOfWork:
        return UnitOfWork(self.database.write)

    async def claim(self) -> None:
        async with self.open() as uow:
            self.lease = await claim(uow, self.consumer, self.owner, 60)
            await uow.commit()
        assert self.lease is not None, "another worker has the lease"

    async def step(self, limit: int = 5000) -> bool:
        """One batch; returns whether there was something to do."""
        if self.lease is None:
            await self.claim()
        assert self.lease is not None
        return (await run(self.open, self.consumer, self.lease, limit)).more

    async def catch_up(self, limit: int = 5000) -> None:
        """Read everything that is new, then look once more."""
        while await self.step(limit):
            pass


async def rows(engine: AsyncEngine, statement: str, **parameters: Any) -> list[Any]:
    """The rows of a query, as tuples."""
    async with engine.begin() as connection:
        result = await connection.execute(text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []


async def content(analytics: Analytics) -> dict[str, list[Any]]:
    """All rows of the reports, ordered."""
    return {
        table: sorted(await rows(analytics.engine, f"SELECT * FROM {table}"), key=lambda row: repr(row))
        for table in TABLES
    }


CONFIRMED = "SELECT coalesce(sum(orders), 0)::int FROM report_days WHERE seller_id = 0 AND type = 'order.confirmed'"


class Shop:
    """Writes events about an order of two lines, as often as a test wants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def open(self) -> "Shop":
        buyer: User = await make_user(self.database)
        lines = [(await make_product(self.database), 2), (await make_product(self.database), 1)]
        self.order_id: UUID = (await make_order(self.database, buyer=buyer, lines=lines)).id
        await rows(
            self.database.engine,
            "INSERT INTO order_transitions (order_id, to_status) VALUES (:order, 'pending')",
            order=self.order_id,
        )
        return self

    def placed(self) -> OrderPlaced:
        return OrderPlaced(order_id=self.order_id, buyer_id=1, total=Decimal(30))

    async def confirm(self, times: int = 1) -> None:
        async with UnitOfWork(self.database.write) as uow:
            for _ in range(times):
                uow.record(OrderConfirmed(order_id=self.order_id, total=Decimal(30)))
            await uow.commit()

    async def confirm_on(self, moment: datetime) -> None:
        """An event of an earlier month, which has a partition of its own."""
        async with self.database.engine.begin() as connection:
            await add_partitions(connection, [(moment.year, moment.month)])
        await rows(
            self.database.engine,
            "INSERT INTO events (id, type, version, aggregate, payload) VALUES"
            " (:id, 'order.confirmed', 1, 'order/x', jsonb_build_object('order_id', CAST(:order AS text)))",
            id=uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000),
            order=str(self.order_id),
        )


async def confirmed(analytics: Analytics) -> int:
    return int((await rows(analytics.engine, CONFIRMED))[0][0])


async def lag(database: Database) -> Lag:
    async with UnitOfWork(database.write) as uow:
        (found,) = await log.lags(uow)
    return found


async def state(analytics: Analytics) -> dict[str, list[Any]]:
    """Everything in the analytics database, as a backup would have it."""
    return {**await content(analytics), "log_places": await rows(analytics.engine, "SELECT * FROM log_places")}


async def restore(analytics: Analytics, backup: dict[str, list[Any]]) -> None:
    """Put the tables back as they were, as their owner could."""
    owner = create_async_engine(analytics.engine.url.set(username=OWNER))
    for table, kept in backup.items():
        await rows(owner, f"DELETE FROM {table}")
        for row in kept:
            names = {f"v{number}": value for number, value in enumerate(row)}
            await rows(owner, f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in names)})", **names)
    await owner.dispose()


async def sink_of(database: Database) -> tuple[Any, ...]:
    """The row of the primary about the sink, and that of its consumer's place, as a backup would have them."""
    (found,) = await rows(
        database.engine,
        "SELECT reads, stored, CAST(seen AS text), CAST(reading AS text), position, until"
        " FROM log_sinks JOIN log_consumers USING (name)",
    )
    return tuple(found)


async def rebuild(reporter: Reporter) -> Any:
    """What `waybill reports rebuild` does, up to the first batch."""
    async with reporter.open() as uow:
        series, reporter.lease, extent = await log.restart_sink(uow, service.CONSUMER, reporter.owner, 60)
        await uow.commit()
    async with reporter.analytics.open() as work:
        kept = await service.start_over(work, series, extent.oldest)
        await work.commit()
    return kept
