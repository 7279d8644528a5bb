"""Connects to PostgreSQL, directly or through a pooler that lends out a server connection for each transaction.

PgBouncer in transaction mode has no sessions. It refuses the settings that a client asks for when it connects, or
ignores them; what is set or prepared in one transaction stays on a server connection that others use next. So behind a
pooler, each BEGIN sets everything for its transaction, and statements are not kept prepared.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg
from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from services.connections import Connection, quoted

logger = logging.getLogger(__name__)

_PROTOCOL_VIOLATION = "08P01"
_REFUSED = "startup parameter"

_OF_THE_SOCKET = "tcp_"
"""The prefix of settings that concern the server's TCP connection, which is the pooler's."""

_NAME = "application_name"


class Connector:
    """Makes the connections of one engine: a listener of SQLAlchemy's `do_connect`.

    It asks each connection whether PostgreSQL itself is at the other end. An engine that has found a pooler assumes one
    from then on. That also works on a direct connection, where it is only a little slower.
    """

    def __init__(
        self, settings: Mapping[str, str], settings_of_17: Mapping[str, str], opened: Callable[[Connection], None]
    ) -> None:
        """`settings` are for every connection, `settings_of_17` for servers from PostgreSQL 17 on.

        `opened` is called with each connection before anything is asked of it.
        """
        self._settings = settings
        self._settings_of_17 = settings_of_17
        self._opened = opened
        self._pooled = False

    def __call__(
        self, dialect: Dialect, _: ConnectionPoolEntry, cargs: tuple[Any, ...], cparams: dict[str, Any]
    ) -> DBAPIConnection:
        if not self._pooled:
            connection = self._directly(dialect, cargs, cparams)
            if connection is not None:
                return connection
            logger.info("the database is behind a pooler: each transaction begins with its settings")
            self._pooled = True
        return self._through_pooler(dialect, cargs, cparams)

    def _directly(self, dialect: Dialect, cargs: tuple[Any, ...], cparams: Mapping[str, Any]) -> DBAPIConnection | None:
        """A connection to the server itself; None if there is a pooler in between."""
        try:
            connection = _connect(dialect, cargs, {**cparams, "server_settings": dict(self._settings)})
        except Exception as error:
            if _refuses_settings(error):
                return None
            raise
        driver = _driver_of(dialect, connection)
        self._opened(driver)
        try:
            is_direct = self._prepare(connection, driver)
        except BaseException:
            driver.terminate()
            raise
        if not is_direct:
            driver.terminate()
        return connection if is_direct else None

    def _prepare(self, connection: DBAPIConnection, driver: Connection) -> bool:
        """Set what could not be set at the start. Returns False if there is a pooler in between."""
        # Not on the driver itself, whose errors SQLAlchemy would not recognize.
        cursor = connection.cursor()
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone() or (None,)
        # A pooler gives each client an id of its own, for requests to cancel a statement.
        if backend != driver.get_server_pid():
            return False
        # Only now: an older server refuses a connection that asks for a setting it does not know.
        later = self._settings_of_17 if driver.get_server_version() >= (17,) else {}
        for name, value in later.items():
            cursor.execute(f"SET {name} = {quoted(value)}")
        cursor.close()
        if later:
            connection.commit()
        else:
            connection.rollback()
        return True

    def _through_pooler(self, dialect: Dialect, cargs: tuple[Any, ...], cparams: Mapping[str, Any]) -> DBAPIConnection:
        options = {
            **cparams,
            "server_settings": {_NAME: self._settings[_NAME]},
            # Without a cache the driver names no statement, and sends each one's text and values together.
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
        }
        connection = _connect(dialect, cargs, options)
        driver = _driver_of(dialect, connection)
        self._opened(driver)
        settings = {name: value for name, value in self._settings.items() if not name.startswith(_OF_THE_SOCKET)}
        del settings[_NAME]
        # The default would only apply to later transactions.
        isolation = settings.pop("default_transaction_isolation")
        if driver.get_server_version() >= (17,):
            settings |= self._settings_of_17
        driver.begin_with(isolation, settings)
        return connection


def _connect(dialect: Dialect, cargs: tuple[Any, ...], options: Mapping[str, Any]) -> DBAPIConnection:
    return dialect.connect(*cargs, **options, async_creator_fn=_in_a_task)


async def _in_a_task(*arguments: Any, **options: Any) -> Any:
    """Connect in a task that does not take turns with requests (`services/api/run_queue.py`).

    Between two steps of connecting, the server may end the connection. If the next step came later than the driver
    expects, the transport would raise `RuntimeError`.
    """
    return await asyncio.create_task(asyncpg.connect(*arguments, **options))


def _driver_of(dialect: Dialect, connection: DBAPIConnection) -> Connection:
    driver = dialect.get_driver_connection(connection)
    assert isinstance(driver, Connection)
    return driver


def _refuses_settings(error: Exception) -> bool:
    state = getattr(error, "sqlstate", None)
    return state == _PROTOCOL_VIOLATION and _REFUSED in str(error)
