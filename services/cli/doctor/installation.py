"""What the checks look at: the settings, and connections that never wait long."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from redis.asyncio import Redis
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services.analytics import Analytics, open_analytics
from services.database import Database, Limits, close, make_engine, make_session_factory, open_database
from services.database_urls import for_asyncpg
from services.outbox.engine.repository import claim_settings
from services.settings import Settings
from services.unit_of_work import UnitOfWork

PATIENCE = 5.0
"""Time limit for a statement, and for a new connection, in seconds."""

REDIS_PATIENCE = 2.0
"""Time limit for an answer from Redis, in seconds."""

_LIMITS = Limits(statement=PATIENCE, lock=1.0, transaction=2 * PATIENCE)


@dataclass(frozen=True, slots=True)
class Installation:
    """One installation, seen with the settings of its processes."""

    settings: Settings
    database: Database
    redis: Redis
    analytics: Analytics | None
    admin: AsyncEngine | None
    """Signs in with the superuser's address, if there is one: only such a role sees what others' sessions do."""
    snapshot_limit: float
    """The age of a transaction, in seconds, from which it is reported for holding a snapshot."""

    def work(self) -> UnitOfWork:
        """A unit of work for reading; it is never committed."""
        return UnitOfWork(self.database.write, name="waybill doctor")

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncConnection]:
        """A connection with the role that sees most: the superuser's if it can be had, else the application's."""
        async with AsyncExitStack() as stack:
            connection: AsyncConnection | None = None
            if self.admin is not None:
                with suppress(DBAPIError, PoolTimeout, OSError):
                    connection = await stack.enter_async_context(self.admin.connect())
            if connection is None:
                connection = await stack.enter_async_context(self.database.engine.connect())
            yield connection

    @asynccontextmanager
    async def plainly(self) -> AsyncIterator[AsyncConnection]:
        """A connection as any other client has it: without the settings that Waybill states."""
        uncached = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        limits = {"timeout": PATIENCE, "command_timeout": PATIENCE}
        engine = create_async_engine(
            self.settings.async_url(), poolclass=NullPool, hide_parameters=True, connect_args={**uncached, **limits}
        )
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def claiming(self, connections: int = 1) -> AsyncIterator[AsyncEngine]:
        """An engine whose connections have the settings of a worker's poll loops."""
        engine = make_engine(
            self.settings,
            "doctor-outbox",
            limits=_LIMITS,
            pool_size=connections,
            server_settings=claim_settings(PATIENCE),
            connect_timeout=PATIENCE,
        )
        try:
            yield engine
        finally:
            await close(engine)

    @asynccontextmanager
    async def claiming_work(self) -> AsyncIterator[UnitOfWork]:
        """A unit of work as that of a poll loop."""
        async with self.claiming() as engine, UnitOfWork(make_session_factory(engine), name="waybill doctor") as work:
            yield work


@asynccontextmanager
async def open_installation(settings: Settings, snapshot_limit: float) -> AsyncIterator[Installation]:
    """The installation of these settings. It connects when something is asked."""
    patient = settings.model_copy(update={"database_pool_timeout": min(PATIENCE, settings.database_pool_timeout)})
    redis: Redis = Redis.from_url(
        settings.redis_url, socket_connect_timeout=REDIS_PATIENCE, socket_timeout=REDIS_PATIENCE
    )
    async with (
        open_database(patient, "doctor", _LIMITS) as database,
        open_analytics(patient, "doctor", _LIMITS, 1) as analytics,
        redis,
        AsyncExitStack() as stack,
    ):
        admin = None
        if settings.admin_database_url is not None:
            url = for_asyncpg(settings.admin_database_url.get_secret_value())
            admin = make_engine(patient, "doctor-admin", url, limits=_LIMITS, pool_size=1, connect_timeout=PATIENCE)
            stack.push_async_callback(close, admin)
        yield Installation(patient, database, redis, analytics, admin, snapshot_limit)
