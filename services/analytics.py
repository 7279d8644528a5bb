"""The analytics database: its engine, its session factory and its unit of work. It exists only if reports are on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from migrations.revisions import revisions
from services.database import Limits, SessionFactory, close, make_engine, make_session_factory
from services.outbox.log.schemas import Place
from services.outbox.sink import SinkUnusable
from services.reports.repository import ReportRepository
from services.settings import Settings
from services.sql import sqlstate
from services.transaction import RepositoryOf, Transaction

HOW_TO_TURN_ON = "set WAYBILL_ANALYTICS_URL and run `waybill migrate --database analytics`"

_MIGRATE = "run `waybill migrate --database analytics`"
_UNDEFINED_TABLE = "42P01"


class TablesMissing(SinkUnusable):
    """The analytics database has no tables, or those of an older release. The message names the command."""


class AnalyticsWork(Transaction):
    """One transaction of the analytics database. It has no outbox: events are recorded in the primary."""

    reports = RepositoryOf(ReportRepository)

    async def check_tables(self) -> None:
        """Raises `TablesMissing` unless the tables are those of this release or of a newer one."""
        known = revisions("analytics")
        try:
            revision = await self.reports.revision()
        except DBAPIError as error:
            if sqlstate(error) != _UNDEFINED_TABLE:
                raise
            revision = None
        if revision is None:
            raise TablesMissing(f"the analytics database has no tables: {_MIGRATE}")
        if revision in known[:-1]:
            raise TablesMissing(
                f"the analytics database is at revision {revision}, but this release needs {known[-1]}: {_MIGRATE}"
            )

    async def place(self, consumer: str) -> Place | None:
        """How far the consumer has come; None if it has read nothing. Raises `TablesMissing`."""
        await self.check_tables()
        return await self.reports.place(consumer)

    async def move(self, consumer: str, before: Place | None, after: Place) -> bool:
        """Store the place, and lock it. Returns False if it is not `before` any more."""
        return await self.reports.move(consumer, before, after)


@dataclass(frozen=True, slots=True)
class Analytics:
    """The engine and the session factory of one process for the analytics database."""

    engine: AsyncEngine
    sessions: SessionFactory

    def open(self) -> AnalyticsWork:
        return AnalyticsWork(self.sessions, name="reports")


@asynccontextmanager
async def open_analytics(
    settings: Settings, process: str, limits: Limits, pool_size: int
) -> AsyncIterator[Analytics | None]:
    """The analytics database, or None if reports are off. It connects at the first statement."""
    url = settings.analytics_async_url()
    if url is None:
        yield None
        return
    engine = make_engine(settings, f"{process}-analytics", url, limits=limits, pool_size=pool_size)
    try:
        yield Analytics(engine, make_session_factory(engine))
    finally:
        await close(engine)
