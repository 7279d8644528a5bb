"""Checks the database and Redis without the request pool, so that it works while that pool is exhausted."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Generic, Literal, TypeAlias, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.budget import PROBE_CONNECTIONS
from services.connections import on_a_live_connection
from services.database import Limits, SessionFactory, close, make_engine, make_session_factory
from services.outbox.origin import service as origin
from services.settings import Settings
from services.shielding import end
from services.startup import Schema

logger = logging.getLogger(__name__)

DatabaseState: TypeAlias = Literal["ok", "unreachable", "read_only", "copied"]
RedisState: TypeAlias = Literal["ok", "unreachable"]
FoundT = TypeVar("FoundT")

_KEPT = 1.0
"""Seconds for which an answer is cached."""

_ORIGIN_KEPT = 10.0
"""Seconds for which an answer about the database's origin is reused, since finding out takes longer."""

_DATABASE_PATIENCE = 2.0
_ORIGIN_PATIENCE = 0.1
_REDIS_PATIENCE = 0.1
"""Time limits for an answer, in seconds. Redis is a hint: it is not worth a long wait."""

# A server that accepts no writes is in recovery, or is configured as read-only.
_READ_ONLY = text("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool")


class Shared(Generic[FoundT]):
    """One look at a time, shared by all callers. `look` must have its own time limit."""

    def __init__(self, look: Callable[[], Awaitable[FoundT]], kept: float = _KEPT) -> None:
        self._look = look
        self._kept = kept
        self._looking: asyncio.Task[FoundT] | None = None
        self._ended = 0.0

    async def ask(self, patience: float) -> FoundT | None:
        """What was found, at most `kept` seconds ago; None if there is no answer within `patience` seconds.

        The look then continues, and callers that ask in the meantime wait for the same one.
        """
        looking = self._looking
        if looking is None or (looking.done() and monotonic() - self._ended >= self._kept):
            looking = self._looking = asyncio.create_task(self._run())
        await asyncio.wait({looking}, timeout=patience)
        return looking.result() if looking.done() else None

    async def close(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            await end(self._looking)

    async def _run(self) -> FoundT:
        try:
            return await self._look()
        finally:
            self._ended = monotonic()


class Probe:
    """The connections that readiness, the canary and the metrics use."""

    def __init__(self, engine: AsyncEngine, redis: Redis, schema: Schema) -> None:
        self.engine = engine
        self.schema = schema
        """What the last look at the database has found out about its tables."""
        self.sessions: SessionFactory = make_session_factory(engine)
        self.scraping = asyncio.Lock()
        """Held by a scrape: concurrent scrapes would leave no connection for the short checks."""
        self._redis = redis
        self._database = Shared(self._look_at_database)
        self._copied = Shared(self._look_at_origin, _ORIGIN_KEPT)
        self._redis_answers = Shared(self._look_at_redis)

    async def database(self) -> DatabaseState:
        """Whether the database answers, accepts writes, and has been adapted to its cluster if it came from another.

        Also looks at its tables, for `schema`.
        """
        state = await self._database.ask(_DATABASE_PATIENCE) or "unreachable"
        # Without an answer in time, the next call has it.
        return "copied" if state == "ok" and await self._copied.ask(_ORIGIN_PATIENCE) else state

    async def redis(self) -> RedisState:
        return "ok" if await self._redis_answers.ask(_REDIS_PATIENCE) else "unreachable"

    async def close(self) -> None:
        await self._database.close()
        await self._copied.close()
        await self._redis_answers.close()

    async def _look_at_database(self) -> DatabaseState:
        try:
            async with asyncio.timeout(_DATABASE_PATIENCE):
                return await on_a_live_connection(self._ask_database)
        except (SQLAlchemyError, OSError, TimeoutError):
            return "unreachable"

    async def _ask_database(self) -> DatabaseState:
        async with self.engine.connect() as connection:
            # Without a transaction, one round trip a statement is enough, and no rollback waits for a silent server.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            read_only = (await connection.execute(_READ_ONLY)).scalar_one()
            await self.schema.follow(connection)
            return "read_only" if read_only else "ok"

    async def _look_at_origin(self) -> bool:
        try:
            async with asyncio.timeout(_DATABASE_PATIENCE), self.engine.connect() as connection:
                found = await origin.complaint(connection)
        except (SQLAlchemyError, OSError, TimeoutError):
            return False
        if found is not None:
            logger.error("%s", found)
        return found is not None

    async def _look_at_redis(self) -> bool:
        # The client's own timeouts end it. A connection that is cancelled during its handshake would return to the
        # pool with a reply still to come, which the next command would take for its own.
        try:
            await self._redis.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError):
            return False
        return True


@asynccontextmanager
async def open_probe(settings: Settings, redis: Redis, schema: Schema) -> AsyncIterator[Probe]:
    """A probe with its own engine, disposed of on exit."""
    engine = make_engine(settings, "api-probe", limits=Limits.of_requests(settings), pool_size=PROBE_CONNECTIONS)
    probe = Probe(engine, redis, schema)
    try:
        yield probe
    finally:
        await probe.close()
        await close(engine)
