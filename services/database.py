"""Naming convention, shared registry, engines, session factories and the connection budget."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy import URL, ExceptionContext, event
from sqlalchemy import Connection as SqlConnection
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, SessionTransaction
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel import Session, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.main import default_registry

from services.connections import (
    KEEPALIVE_IDLE,
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PROBES,
    PROMPT,
    READ_ONLY,
    USER_TIMEOUT_MS,
    CommitUnknown,
    Connection,
    NotCommitted,
    NotYours,
    PoolGuard,
    concerns_one_session,
)
from services.pooler import Connector
from services.redaction import redact
from services.replica import PATIENCE, Replica
from services.settings import Settings
from services.shielding import settled
from services.tracing import begun_statement, fail, is_on
from services.tracing import statement as traced

logger = logging.getLogger(__name__)

# Before any model is defined: Alembic finds and drops constraints by these names.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = SQLModel.metadata

_ISOLATION = "read committed"
"""The isolation level of every transaction that does not ask for another one."""

SessionFactory: TypeAlias = async_sessionmaker[AsyncSession]

LENT = "lent"
"""The key in a session's `info` that says whether its transaction is lent to a handler, which must not end it."""

_SPAN = "waybill_span"
"""The attribute of a statement's execution that holds its span, if this process makes spans."""

CHECKS_ORDER = "checks_order"
"""The key in a session's `info` that says whether its transaction checks the order of events."""


class DeclarativeTable(DeclarativeBase):
    """Base of the plain SQLAlchemy models.

    It shares SQLModel's *registry*, not only its metadata, so that relationships by name resolve both ways.
    """

    registry = default_registry


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits that the server enforces on a connection, in seconds. The client waits `PROMPT` longer.

    `transaction` needs PostgreSQL 17 and is not set on older servers. `idle` is how long a transaction may wait for its
    client; None: as long as in `Settings`, which is above the time that a worker's batch may take.
    """

    statement: float
    lock: float
    transaction: float | None = None
    idle: float | None = None

    @classmethod
    def of_requests(cls, settings: Settings) -> "Limits":
        """For work that a client waits for."""
        return cls(
            settings.database_statement_timeout,
            settings.database_lock_timeout,
            settings.database_transaction_timeout,
            # On older servers, it is the only limit on a request that has stopped.
            min(settings.database_transaction_timeout, settings.database_idle_in_transaction_timeout),
        )

    @classmethod
    def of_jobs(cls) -> "Limits":
        """For jobs and commands: an audit or an export takes as long as there are rows."""
        return cls(statement=3600.0, lock=30.0)

    @classmethod
    def of_sinks(cls) -> "Limits":
        """For consumers of the log that write to another database: a batch takes well below a second."""
        return cls(statement=15.0, lock=5.0)

    @classmethod
    def of_migrations(cls) -> "Limits":
        """For migrations: `CREATE INDEX CONCURRENTLY` waits for every older snapshot. Steps set their own limits."""
        return cls(statement=86_400.0, lock=3600.0)


def make_engine(
    settings: Settings,
    process: str,
    url: URL | None = None,
    *,
    limits: Limits | None = None,
    pool_size: int | None = None,
    server_settings: Mapping[str, str] | None = None,
    pool_class: type[AsyncAdaptedQueuePool] = AsyncAdaptedQueuePool,
    keep_cancelled: bool = False,
    connect_timeout: float | None = None,
) -> AsyncEngine:
    """An asyncpg engine for one process; `process` shows as `application_name` in `pg_stat_activity`.

    The caller disposes of it. It connects at the first statement. The default limits are those of jobs. With
    `pool_size`, it never has more connections than that; `server_settings` are further PostgreSQL settings.
    `keep_cancelled` is for an engine whose callers cancel slow statements themselves and then continue from a
    savepoint: a cancelled statement leaves its transaction open. `connect_timeout` is in seconds; the default is the
    pool's timeout.
    """
    limits = limits or Limits.of_jobs()
    _keep_off_standard_output(pool_class)
    engine = create_async_engine(
        url or settings.async_url(),
        poolclass=pool_class,
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0 if pool_size else settings.database_max_overflow,
        pool_timeout=settings.database_pool_timeout,
        pool_recycle=settings.database_pool_recycle,
        pool_pre_ping=settings.database_pool_pre_ping,
        # Last in, first out: connections left over from a burst become idle and are closed.
        pool_use_lifo=True,
        echo=settings.database_echo,
        echo_pool=settings.database_echo_pool,
        # Neither errors nor what is echoed show them.
        hide_parameters=True,
        connect_args={
            "connection_class": Connection,
            "timeout": connect_timeout or settings.database_pool_timeout,
            "command_timeout": limits.statement + PROMPT,
        },
    )
    of_17 = {} if limits.transaction is None else {"transaction_timeout": _milliseconds(limits.transaction)}
    # It listens first: it may refuse to connect.
    guard = PoolGuard(engine)
    of_all = {**_server_settings(settings, process, limits), **(server_settings or {})}
    event.listen(engine.sync_engine, "do_connect", Connector(of_all, of_17, guard.opened))
    event.listen(engine.sync_engine, "handle_error", _redact)
    event.listen(engine.sync_engine, "handle_error", _judge)
    if keep_cancelled:
        event.listen(engine.sync_engine, "handle_error", _keep_where_cancelled)
    if is_on():
        # Those that `services/sql.py` sends to the driver itself have spans there.
        event.listen(engine.sync_engine, "before_cursor_execute", _begin_span)
        event.listen(engine.sync_engine, "after_cursor_execute", _end_span)
        event.listen(engine.sync_engine, "handle_error", _fail_span)
    return engine


def _begin_span(_: SqlConnection, __: Any, text: str, ___: Any, context: ExecutionContext | None, ____: bool) -> None:
    setattr(context, _SPAN, begun_statement(text))


def _end_span(_: SqlConnection, __: Any, ___: str, ____: Any, context: ExecutionContext | None, _____: bool) -> None:
    if (span := getattr(context, _SPAN, None)) is not None:
        span.end()


def _fail_span(context: ExceptionContext) -> None:
    if (span := getattr(context.execution_context, _SPAN, None)) is not None:
        fail(span, context.original_exception)
        span.end()


def _keep_off_standard_output(pool_class: type[AsyncAdaptedQueuePool]) -> None:
    """If the process has set up its log, keep SQLAlchemy from also writing what it echoes to standard output."""
    if logging.getLogger().handlers:
        for name in ("sqlalchemy.engine.Engine", f"{pool_class.__module__}.{pool_class.__name__}"):
            if not logging.getLogger(name).handlers:
                logging.getLogger(name).addHandler(logging.NullHandler())


def _server_settings(settings: Settings, process: str, limits: Limits) -> dict[str, str]:
    return {
        "application_name": f"waybill-{process}",
        # Only this schema: if a table is missing there, that of another tenant must not be used.
        "search_path": settings.database_schema,
        "timezone": "UTC",
        # Stated, whatever the defaults of the server, the database and the role. In a stricter level, a claim would not
        # see what was committed after its transaction's first statement, and would not wake or park the rows it must.
        "default_transaction_isolation": _ISOLATION,
        "idle_in_transaction_session_timeout": _milliseconds(
            settings.database_idle_in_transaction_timeout if limits.idle is None else limits.idle
        ),
        "statement_timeout": _milliseconds(limits.statement),
        # The server detects a vanished peer as soon as we do (`services.connections`), and releases its locks.
        "tcp_keepalives_idle": str(KEEPALIVE_IDLE),
        "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL),
        "tcp_keepalives_count": str(KEEPALIVE_PROBES),
        "tcp_user_timeout": str(USER_TIMEOUT_MS),
        # Also while it is busy or waiting for a lock. Without this, it notices only when it has something to send.
        "client_connection_check_interval": "5s",
        "lock_timeout": _milliseconds(limits.lock),
        # A warning during a commit means that the answer proves nothing; see `Connection`.
        "client_min_messages": "warning",
        # For searches: the default, 0.6, misses ordinary typos ("lantrn" scores 0.57 against "lantern").
        "pg_trgm.word_similarity_threshold": "0.45",
        # The statements here are short and many: compiling one costs more than it saves.
        "jit": "off",
        # Rows come from memory or a solid-state disk. With 4, the default for spinning disks, statements that take
        # an array of ids scan tables of a few thousand rows sequentially (a transfer's write in PostgreSQL, 2,000
        # accounts: 0.41 ms with 4, 0.22 ms with 1.1).
        "random_page_cost": "1.1",
    }


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _redact(context: ExceptionContext) -> None:
    """Take the values of rows out of the error before anyone can log or store what it says."""
    redact(context.sqlalchemy_exception or context.original_exception)


def _judge(context: ExceptionContext) -> None:
    """Tell SQLAlchemy which errors mean that the server is gone, or is no longer the primary.

    It then closes the connection and replaces those that were opened before.
    """
    error = context.original_exception
    confused = isinstance(error.__cause__, asyncpg.InternalClientError)
    if isinstance(error, TimeoutError) or confused or getattr(error, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
    if concerns_one_session(error):
        context.invalidate_pool_on_disconnect = False
    elif context.is_disconnect and context.engine is not None and isinstance(error, Exception):
        PoolGuard.of(context.engine).distrust()
    if isinstance(error, TimeoutError):
        # The driver's statement limit. The server's own limit is shorter, so the server must be silent.
        raise OperationalError(
            context.statement, context.parameters, error, hide_parameters=True, connection_invalidated=True
        ) from error


def _keep_where_cancelled(context: ExceptionContext) -> None:
    """Keep the transaction of a statement that was cancelled for taking too long: a savepoint can undo the statement.

    SQLAlchemy would discard the connection, and with it everything else that the transaction has done. The driver stops
    the statement at the server and makes the next one wait until it has stopped. After a cancelled rollback the
    connection is not kept, since it is unknown whether the rollback has happened.
    """
    if (
        isinstance(context.original_exception, asyncio.CancelledError)
        and context.connection is not None
        and context.statement is not None
    ):
        driver = context.connection.connection.driver_connection
        assert isinstance(driver, Connection)
        context.is_disconnect = not driver.is_in_transaction()


@event.listens_for(Session, "after_begin")
def _name_work(session: OrmSession, _: SessionTransaction, connection: SqlConnection) -> None:
    """Note on the connection which unit of work uses it, for the log message about a transaction left open."""
    if work := session.info.get("work"):
        connection.info["work"] = work


def check_owner(session: OrmSession | AsyncSession) -> None:
    """Raises `NotYours` while the session's transaction is lent."""
    if session.info.get(LENT):
        raise NotYours


class _LendableSession(Session):
    """A session that cannot be committed, rolled back or closed while its transaction is lent to a handler."""

    def commit(self) -> None:
        check_owner(self)
        super().commit()

    def rollback(self) -> None:
        check_owner(self)
        super().rollback()

    def close(self) -> None:
        check_owner(self)
        super().close()

    def reset(self) -> None:
        check_owner(self)
        super().reset()

    def invalidate(self) -> None:
        check_owner(self)
        super().invalidate()


def make_session_factory(engine: AsyncEngine, *, checks_order: bool = False) -> SessionFactory:
    """Sessions that keep their objects readable after a commit (an expired attribute cannot be awaited).

    `checks_order` is `Settings.checks_order`.
    """
    return async_sessionmaker(
        engine,
        class_=AsyncSession,
        sync_session_class=_LendableSession,
        expire_on_commit=False,
        info={CHECKS_ORDER: True} if checks_order else {},
    )


async def commit(session: AsyncSession) -> None:
    """Commit the session's transaction; return only if the commit is proven (`services.connections`).

    A session without a transaction has nothing to commit. If the proof is missing, the connection is closed, and the
    error that SQLAlchemy raises has a `NotCommitted` or `CommitUnknown` as its cause.
    """
    with traced("COMMIT"):
        await session.run_sync(_commit)


def _commit(session: OrmSession) -> None:
    if not (session.in_transaction() or session.new or session.dirty or session.deleted):
        return
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, Connection)
    proven = driver.commits
    session.commit()
    if driver.commits == proven:
        driver.terminate()
        raise NotCommitted("the transaction ended without a commit")


def outcome_unknown(error: BaseException) -> bool:
    """Whether the outcome of the commit is unknown after this error."""
    return isinstance(_driver_error(error), CommitUnknown)


def not_committed(error: BaseException) -> bool:
    """Whether this error of a commit means that there was no transaction to commit."""
    return isinstance(_driver_error(error), NotCommitted)


def _driver_error(error: BaseException) -> BaseException | None:
    return error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig is not None else error


@dataclass(frozen=True, slots=True)
class Database:
    """The engines and session factories of one process. `write` is the primary."""

    engine: AsyncEngine
    write: SessionFactory
    replica: Replica | None = None
    replicated: SessionFactory | None = None
    """Sessions on the replica, if one is configured."""

    @property
    def read(self) -> SessionFactory:
        """Where to read what may lag: the replica while it is fit, otherwise the primary."""
        if self.replica is None or self.replicated is None or not self.replica.is_fit:
            return self.write
        return self.replicated

    async def look_and_read(self) -> SessionFactory:
        """`read`, after a look at the replica: for a process that does not watch it."""
        if self.replica is not None:
            await self.replica.look()
        return self.read


@asynccontextmanager
async def open_database(
    settings: Settings,
    process: str,
    limits: Limits | None = None,
    pool_class: type[AsyncAdaptedQueuePool] = AsyncAdaptedQueuePool,
) -> AsyncIterator[Database]:
    """The process's engines, created on entry and disposed of on exit. The default limits are those of jobs.

    A replica is not read before someone looks at it (`Replica.watched`, `Database.look_and_read`).
    """
    async with AsyncExitStack() as stack:
        engine = make_engine(settings, process, limits=limits, pool_class=pool_class)
        stack.push_async_callback(close, engine)
        write = make_session_factory(engine, checks_order=settings.checks_order)
        url = settings.replica_url()
        if url is None:
            yield Database(engine, write)
            return
        reading = make_engine(settings, f"{process}-read", url, limits=limits, connect_timeout=PATIENCE)
        watching = make_engine(
            settings, f"{process}-replica", url, limits=limits, pool_size=1, connect_timeout=PATIENCE
        )
        position = make_engine(settings, f"{process}-position", limits=limits, pool_size=1)
        for one in (reading, watching, position):
            stack.push_async_callback(close, one)
        replica = Replica(reading, watching, position, settings.database_replica_max_lag)
        stack.push_async_callback(replica.close)
        yield Database(engine, write, replica, make_session_factory(reading))


async def close(engine: AsyncEngine) -> None:
    """Dispose of the engine, after the commits and rollbacks that cancelled tasks have left running."""
    await settled()
    await PoolGuard.of(engine.sync_engine).close_idle()
    await engine.dispose()
