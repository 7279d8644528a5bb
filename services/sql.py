"""Plain SQL inside a unit of work: named parameters, compiled once, without the cost of a mapped statement."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession

Row: TypeAlias = Mapping[str, Any]

CONTENTION = frozenset({"40001", "40P01"})
"""SQLSTATEs of a serialization failure and a deadlock: the same transaction may succeed when tried again."""

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_STATUS = re.compile(r"(\d+)$", re.ASCII)
_FETCHED = 500
"""Rows that a cursor fetches at a time."""


class Statement:
    """SQL with `:name` parameters, turned into PostgreSQL's numbered ones once, where it is defined.

    Types are PostgreSQL's to infer: where it cannot, the SQL says `CAST(:name AS type)`. JSON goes in as text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.parameters = tuple(dict.fromkeys(_PARAMETER.findall(text)))
        numbers = {name: number for number, name in enumerate(self.parameters, start=1)}
        self.sql = _PARAMETER.sub(lambda match: f"${numbers[match[1]]}", text)

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the order of their numbers. Raises `TypeError` for a missing or unknown name."""
        if parameters.keys() != set(self.parameters):
            raise TypeError(f"the statement takes {self.parameters}, not {tuple(parameters)}")
        return tuple(parameters[name] for name in self.parameters)


class Sql:
    """Runs statements on the connection, and in the transaction, of a session.

    The first statement of a transaction goes through SQLAlchemy, which begins the transaction and finds out whether the
    pooled connection is still alive. The others go straight to the driver: a third of the CPU time each
    (`docs/decisions/0004-set-based-sql-on-hot-paths.md`). Errors are SQLAlchemy's either way.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._driver: asyncpg.Connection | None = None

    @classmethod
    def of(cls, session: AsyncSession) -> "Sql":
        """The one of this session."""
        found = session.info.get("sql")
        if found is None:
            found = session.info["sql"] = cls(session)
        assert isinstance(found, Sql)
        return found

    def release(self) -> None:
        """Forget the connection: the transaction ends."""
        self._driver = None

    async def fetch(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        """The rows that the statement returns."""
        arguments = statement.arguments(parameters)
        driver = self._driver
        if driver is None:
            return (await self._first(statement.sql, arguments))[0]
        _check_transaction(driver)
        try:
            return await driver.fetch(statement.sql, *arguments)  # type: ignore[no-any-return]
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _wrapped(driver, error, statement.sql) from error

    async def run(self, statement: Statement, **parameters: Any) -> int:
        """Run a statement that returns no rows; the number of rows it wrote."""
        arguments = statement.arguments(parameters)
        driver = self._driver
        if driver is None:
            return (await self._first(statement.sql, arguments))[1]
        _check_transaction(driver)
        try:
            status = await driver.execute(statement.sql, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _wrapped(driver, error, statement.sql) from error
        number = _STATUS.search(status)
        return int(number[1]) if number else 0

    async def run_together(self, *statements: Statement) -> None:
        """Run statements that take no parameters, one after the other, in one trip to the database."""
        if self._driver is not None:
            # Without arguments, the driver sends the text as it is.
            statements = (Statement("; ".join(statement.sql for statement in statements)),)
        for statement in statements:
            await self.run(statement)

    async def stream(self, statement: Statement, **parameters: Any) -> AsyncIterator[Row]:
        """The rows that the statement returns, through a server-side cursor: a few hundred in memory at a time.

        Not for the first statement of a transaction. These statements are not logged.
        """
        arguments = statement.arguments(parameters)
        connection = await self._session.connection()
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        _check_transaction(driver)
        try:
            async for row in driver.cursor(statement.sql, *arguments, prefetch=_FETCHED):
                yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if driver.is_closed():
                # The session would try to roll back on it, and that error would hide this one.
                await connection.invalidate(error)
            raise _wrapped(driver, error, statement.sql) from error

    async def _first(self, sql: str, arguments: tuple[Any, ...]) -> tuple[Sequence[Row], int]:
        """The rows that it returns, and the number that it wrote."""
        rows, number, self._driver = await self._session.run_sync(_execute, sql, arguments)
        return rows, number


def _execute(
    session: Session, sql: str, arguments: tuple[Any, ...]
) -> tuple[Sequence[Row], int, asyncpg.Connection | None]:
    """Through SQLAlchemy, in one switch to its synchronous side. No driver where statements are to be logged."""
    connection = session.connection()
    result = connection.exec_driver_sql(sql, arguments)
    rows: Sequence[Any] = result.mappings().all() if result.returns_rows else ()
    driver = None if connection.engine.echo else connection.connection.driver_connection
    return rows, result.rowcount, driver


def _wrapped(driver: asyncpg.Connection, error: Exception, sql: str) -> DBAPIError:
    """The driver's error as SQLAlchemy would raise it."""
    sqlstate = getattr(error, "sqlstate", None) or ""
    lost = driver.is_closed() or isinstance(error, OSError)
    kinds: dict[str, type[DBAPIError]] = {"22": DataError, "23": IntegrityError}
    kind = OperationalError if lost else kinds.get(sqlstate[:2], InternalError)
    return kind(sql, None, error, connection_invalidated=lost)


def _check_transaction(driver: asyncpg.Connection) -> None:
    # A failed flush rolls the whole transaction back: what came after it would be committed statement by statement.
    if not (driver.is_in_transaction() or driver.is_closed()):
        raise RuntimeError("the transaction is over; open a new unit of work")


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's five-character code for what went wrong; None where the server said nothing."""
    return getattr(error.orig, "sqlstate", None)


def violates(error: DBAPIError, constraint: str) -> bool:
    """Whether the database refused the statement because of this constraint or unique index."""
    return f'"{constraint}"' in str(error.orig)


class SqlAccess:
    """What every repository has: the unit of work's session, and plain SQL on its connection."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.sql = Sql.of(session)
