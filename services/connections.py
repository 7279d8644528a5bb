"""Driver connections that prove each commit, and the rules for checking them out of a pool and back in.

`docs/decisions/0021-what-proves-a-commit.md` explains each rule.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import asyncpg
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from services.redaction import redact

logger = logging.getLogger(__name__)

FoundT = TypeVar("FoundT")

PROMPT = 5.0
"""Time limit, in seconds, for a statement that never waits at the server, such as BEGIN or ROLLBACK."""

_COMMIT_LIMIT = 30.0
"""Time limit, in seconds, for a COMMIT, whatever the limit of other statements: it may wait for a lost standby."""

_MAX_IDLE = 60.0
"""Seconds after which an idle connection is replaced: routers forget silent connections without notice."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 15, 5, 3
USER_TIMEOUT_MS = 20_000
"""The connection ends when the peer's kernel has not acknowledged sent bytes for this long (RFC 5482)."""

_TOO_LONG = frozenset({"25P03", "25P04"})
"""SQLSTATEs of a session that the server ended since its transaction was idle, or lasted, for too long."""

_OF_ONE_SESSION = _TOO_LONG | {"57P05"}
"""SQLSTATEs of a session that the server ended because of what it did, or did not do."""

READ_ONLY = "25006"
"""SQLSTATE of a write on a read-only server: the primary has moved."""


_ENDING = r"""(?:\s | --[^\n]*\n | /\*.*?\*/)*
    (?:COMMIT | END | ABORT | ROLLBACK (?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b) | PREPARE\s+TRANSACTION)\b"""
_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE
_ENDS = re.compile(_ENDING, _FLAGS)
"""Matches a statement that ends the transaction."""

_ONE_ENDS = re.compile(f"(?:^|;){_ENDING}", _FLAGS)
"""Finds such a statement among several."""

_QUOTED = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
"""Matches what is quoted: text, or the body of a DO block."""

SILENT = (TimeoutError, asyncpg.InternalClientError)
"""What the driver raises if an answer is late or unexpected; its own state is then unreliable."""


class NotCommitted(asyncpg.InterfaceError):  # type: ignore[misc]
    """The COMMIT did not take effect; the whole transaction was rolled back."""


class CommitUnknown(asyncpg.InterfaceError):  # type: ignore[misc]
    """COMMIT was sent, but its answer is missing or proves nothing: the transaction may or may not be committed."""


class ServerSilent(asyncpg.InterfaceError):  # type: ignore[misc]
    """The server did not answer in time, or its answer was unexpected; the connection is closed."""


class NotYours(asyncpg.InterfaceError):  # type: ignore[misc]
    """A handler tried to end the transaction that it was given. Nothing was sent to the server."""

    def __init__(self) -> None:
        super().__init__(
            "a handler cannot end its transaction: the worker commits it, or rolls it back if the handler raises"
        )


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection. It refuses to begin a transaction inside another, and raises if a COMMIT is not proven.

    If the server does not answer in time, it is assumed to be gone: the connection is closed and `ServerSilent` raised.
    The limit is the connection's `command_timeout`, or `PROMPT` for statements that never wait.
    """

    def __init__(self, protocol: Any, transport: asyncio.Transport, *more: Any) -> None:
        super().__init__(protocol, transport, *more)
        self.commits = 0
        """Proven commits so far."""
        self.lent = False
        """Whether the running code was only lent the transaction, and so cannot end it."""
        self._begin = ""
        """What is sent instead of a plain BEGIN."""
        self._settings = ""
        """What follows each BEGIN in the same message."""
        self._warned = False
        self.add_log_listener(_note_warning)
        _keep_alive(transport)

    def begin_with(self, isolation: str, settings: Mapping[str, str]) -> None:
        """Behind a pooler: begin each transaction with these settings, without another round trip.

        `isolation` is the level of transactions that do not ask for another one.
        """
        self._begin = f"BEGIN ISOLATION LEVEL {isolation};"
        self._settings = "".join(f" SET LOCAL {name} = {quoted(value)};" for name, value in settings.items())

    @property
    def is_pooled(self) -> bool:
        """Whether the transactions of this connection may run in different sessions of the server."""
        return bool(self._begin)

    @property
    def is_idle(self) -> bool:
        """Whether there is neither an open transaction nor a statement that is still being cancelled."""
        return not (self.is_closed() or self.is_in_transaction() or self._cancellations)

    def is_closed(self) -> bool:
        """Whether the connection is closed, or about to be.

        If the server ends it, the transport knows at once, and the driver a round of the event loop later. In between,
        uvloop's transport would raise `RuntimeError` for a statement.
        """
        return bool(super().is_closed()) or bool(self._transport.is_closing())

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open; False if the connection is closed."""
        return not self.is_closed() and bool(super().is_in_transaction())

    def transaction(self, **options: Any) -> Any:
        """A top-level transaction. Inside another one, closes the connection and raises `asyncpg.InterfaceError`.

        The driver would set a savepoint there, and the end of the savepoint would look like a commit.
        """
        if self._top_xact is not None or self.is_in_transaction():
            self.terminate()
            raise asyncpg.InterfaceError("the connection has an open transaction that belongs to someone else")
        return super().transaction(**options)

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """Run a statement; returns its command tag. Raises `NotCommitted` or `CommitUnknown` for an unproven COMMIT."""
        # SQLAlchemy rolls back, with exactly this text, after a flush that failed. Nothing takes effect then.
        if query != "ROLLBACK;":
            # Only without arguments does the server accept several statements at once.
            self._check_owner(query, several=not arguments)
        if query.startswith("COMMIT"):
            return await self._commit(query)
        if query.startswith("ROLLBACK;"):
            return await self._roll_back(query)
        if query.startswith("BEGIN"):
            options["timeout"] = PROMPT
            query = (self._begin if self._begin and query == "BEGIN;" else query) + self._settings
        try:
            status: str = await super().execute(query, *arguments, **options)
        except SILENT as error:
            raise self._give_up(error) from error
        return status

    async def prepare(self, query: str, **options: Any) -> Any:
        """A prepared statement."""
        self._check_owner(query)
        return await super().prepare(query, **options)

    async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
        """The rows that a statement returns."""
        self._check_owner(query)
        try:
            return await super().fetch(query, *arguments, **options)
        except SILENT as error:
            raise self._give_up(error) from error

    def _check_owner(self, query: str, *, several: bool = False) -> None:
        if self.lent and (_ONE_ENDS.search(_QUOTED.sub("", query)) if several else _ENDS.match(query)):
            raise NotYours

    async def close(self, **options: Any) -> None:
        """Close cleanly, or abruptly if the server does not answer within a second."""
        with suppress(TimeoutError):
            await super().close(**{"timeout": 1.0, **options})

    async def _roll_back(self, query: str) -> str:
        # The driver's own limit begins only after the previous statement has been cancelled.
        try:
            async with asyncio.timeout(PROMPT):
                status: str = await super().execute(query)
        except (*SILENT, asyncpg.PostgresError) as error:
            # A request to cancel the previous statement may reach the server late and hit the rollback instead.
            raise self._give_up(error) from error
        return status

    async def _commit(self, query: str) -> str:
        if self.is_closed():
            # It may have been lost long after the last statement, for example while the request waited for its turn.
            raise asyncpg.InterfaceError("the connection was closed before the commit")
        if not self.is_in_transaction():
            self.terminate()
            raise NotCommitted("there is no transaction to commit")
        self._warned = False
        try:
            status: str = await super().execute(query, timeout=_COMMIT_LIMIT)
        except asyncpg.PostgresError as error:
            # The server refused, for example because of a deferred constraint, and rolled back. If it also ended the
            # session, it may have committed first.
            redact(error)
            if self.is_closed() or self.is_in_transaction():
                raise self._unknown(f"the connection ended during the commit: {error}") from error
            raise
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            if isinstance(error, TimeoutError) and self._cancellations:
                # A backend that waits for a standby does not notice that we are gone: wait until it is told to stop.
                await asyncio.wait(set(self._cancellations), timeout=PROMPT)
            raise self._unknown(f"the server did not answer the commit: {error!r}") from error
        except BaseException:
            self.terminate()
            raise
        if status == "ROLLBACK":
            self.terminate()
            raise NotCommitted("the transaction had already failed; the server rolled it back")
        if status != "COMMIT" or self.is_in_transaction() or self._warned:
            raise self._unknown(f"the server answered the commit with {status!r} and a warning")
        self.commits += 1
        return status

    def _unknown(self, reason: str) -> CommitUnknown:
        self.terminate()
        return CommitUnknown(reason)

    def _give_up(self, error: Exception) -> ServerSilent:
        self.terminate()
        redact(error)
        match error:
            case TimeoutError():
                what = "did not answer in time"
            case asyncpg.PostgresError():
                what = "refused to roll back"
            case _:
                what = "sent an unexpected answer"
        return ServerSilent(f"the database {what}; the connection is closed: {error!r}")


async def driver_of(connection: AsyncConnection) -> Connection:
    """The driver's connection under SQLAlchemy's."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, Connection)
    return driver


async def on_a_live_connection(do: Callable[[], Awaitable[FoundT]]) -> FoundT:
    """Do it, and once more if the connection was dead: a restarted server leaves dead connections in the pool."""
    try:
        return await do()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return await do()


def quoted(value: str) -> str:
    """The value as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _note_warning(connection: Connection, message: Any) -> None:
    """Remember a warning: during a COMMIT it means that a standby was not awaited, or that no transaction was open."""
    # Its text is translated and its SQLSTATE is generic, so neither tells the two apart.
    if message.severity_en == "WARNING":
        connection._warned = True


def _keep_alive(transport: asyncio.Transport) -> None:
    """Have the kernel detect within 35 s that the peer has vanished."""
    found = transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": USER_TIMEOUT_MS,
    }
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            # Not every system has all of these options.
            if (number := getattr(socket, name, None)) is not None:
                found.setsockopt(socket.IPPROTO_TCP, number, value)


def concerns_one_session(error: BaseException) -> bool:
    """Whether a connection was lost for a reason that does not affect other connections to the same server."""
    for cause in _causes(error):
        if getattr(cause, "sqlstate", None) in _OF_ONE_SESSION or isinstance(cause, NotCommitted):
            return True
        if isinstance(cause, CommitUnknown):
            # Without a cause, the server did answer, but with a warning.
            return cause.__cause__ is None
    return False


def ended_for_its_time(error: BaseException) -> bool:
    """Whether the server ended the session because its transaction was idle, or lasted, for too long."""
    return any(getattr(cause, "sqlstate", None) in _TOO_LONG for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


class PoolGuard:
    """Watches the connections that one engine's pool checks out and in.

    A connection that is returned with an open transaction, or with a statement that is still being cancelled, is
    closed. One that is closed, was idle for a minute, or was opened before `distrust`, is replaced at checkout.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._generation = 0
        self.is_closed = False
        """Whether a new connection is refused, with `ConnectionRefusedError`."""
        self._idle: set[Connection] = set()
        self._all: WeakSet[Connection] = WeakSet()
        _guards[engine.sync_engine] = self
        event.listen(engine.sync_engine, "do_connect", self._before_connecting)
        event.listen(engine.sync_engine, "connect", self._made)
        event.listen(engine.sync_engine, "checkout", self._given_out)
        event.listen(engine.sync_engine, "checkin", self._taken_back)
        event.listen(engine.sync_engine, "close", self._closed)

    @staticmethod
    def of(engine: Engine) -> "PoolGuard":
        """The guard of this engine."""
        return _guards[engine]

    def distrust(self) -> None:
        """Close idle connections, and the others once they are returned: their server is gone or has been replaced."""
        self._generation += 1
        for driver in list(self._idle):
            driver.terminate()

    def opened(self, driver: Connection) -> None:
        """Take note of a new connection, which may still wait for its first answer."""
        self._all.add(driver)

    def cut(self) -> None:
        """Close all connections, those in use included: what waits for an answer fails immediately."""
        self._generation += 1
        for driver in list(self._all):
            driver.terminate()

    async def close_idle(self) -> None:
        """Close idle connections concurrently: one by one, each could wait for a silent server."""
        await asyncio.gather(*(driver.close() for driver in self._idle))

    def _before_connecting(self, *_: object) -> None:
        if self.is_closed:
            raise ConnectionRefusedError("the server did not answer before")

    def _made(self, _: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        entry.info["fresh"] = True

    def _given_out(self, _: DBAPIConnection, entry: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        driver = entry.driver_connection
        assert isinstance(driver, Connection)
        self._idle.discard(driver)
        entry.info.pop("work", None)
        if entry.info.pop("fresh", False):
            # SQLAlchemy replaces a connection only once. If this one is unusable, its first statement will fail.
            entry.info["generation"] = self._generation
            return
        if (
            not driver.is_idle
            or entry.info["generation"] != self._generation
            or monotonic() - entry.info.get("idle_since", 0.0) > _MAX_IDLE
        ):
            # Closed abruptly: SQLAlchemy would wait two seconds for a server that may be silent.
            driver.terminate()
            raise DisconnectionError("the pooled connection must not be reused")

    def _taken_back(self, connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        driver = entry.driver_connection if connection is not None else None
        if driver is None:
            return
        assert isinstance(driver, Connection)
        entry.info["idle_since"] = monotonic()
        if driver.is_idle:
            self._idle.add(driver)
        elif not driver.is_closed():
            logger.error(
                "a connection was returned to the pool with an open transaction; the connection is closed and the "
                "transaction rolled back. Unit of work: %s",
                entry.info.get("work", "unknown"),
            )
            driver.terminate()

    def _closed(self, _: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        driver = entry.driver_connection
        if isinstance(driver, Connection):
            self._idle.discard(driver)


_guards: WeakKeyDictionary[Engine, PoolGuard] = WeakKeyDictionary()
