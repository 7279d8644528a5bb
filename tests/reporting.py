"""Runs the consumer of reports as a worker does, and reads what it left in the analytics database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.analytics import Analytics, open_analytics
from services.database import Database, Limits
from services.outbox.consumers import claim
from services.outbox.log.schemas import Lease
from services.outbox.sink import SinkConsumer, run
from services.reports import service
from services.settings import Settings
from services.unit_of_work import UnitOfWork

TABLES = ("report_days", "report_waits")

Consumer = SinkConsumer[UnitOfWork, Any, Any]


@asynccontextmanager
async def analytics_of(settings: Settings) -> AsyncIterator[Analytics]:
    """The analytics database of these settings."""
    async with open_analytics(settings, "test", Limits.of_sinks(), 2) as opened:
        assert opened is not None
        yield opened


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
