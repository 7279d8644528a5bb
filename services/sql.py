"""Plain SQL in a unit of work: named parameters, compiled once, without the cost of a mapped statement."""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar, overload

import asyncpg
from sqlalchemy import Column
from sqlalchemy import Connection as SqlConnection
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from services.connections import READ_ONLY, Connection, PoolGuard, concerns_one_session, driver_of
from services.errors import DomainError
from services.redaction import redact, row_of
from services.tracing import statement as traced

Row: TypeAlias = Mapping[str, Any]
Results: TypeAlias = Sequence[Sequence[tuple[Any, ...]]]
FoundT = TypeVar("FoundT")
OtherT = TypeVar("OtherT")

CANCELED = "57014"
"""SQLSTATE of a statement that was stopped, for example because it took too long."""

CONTENTION = frozenset({"40001", "40P01"})
"""SQLSTATEs of a serialization failure and a deadlock: the same transaction may succeed if it is retried."""

INSUFFICIENT_PRIVILEGE = "42501"
"""SQLSTATE of a statement that the role may not run."""

UNDEFINED_OBJECT = "42704"
"""SQLSTATE of a statement that names, for example, a role that does not exist."""

LOCK_NOT_AVAILABLE = "55P03"
"""SQLSTATE of a lock that was not granted in time."""

ACTOR = "actor"
"""In a session's `info`: who acts, as rows record it."""

_OBJECTIONS = ("22", "23", "44", "P0001")
"""Beginnings of SQLSTATEs that object to rows: bad data, a constraint, a view's check option, a trigger's exception."""

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z_0-9]*)")
_LOCK = "FOR NO KEY UPDATE"
_SIZE = re.compile(r"\([^)]*\)")
_STATUS = re.compile(r"(\d+)$", re.ASCII)
_FETCHED = 500
"""Rows that a cursor fetches at a time."""


class Statement:
    """SQL with `:name` parameters, turned into PostgreSQL's numbered ones once, where it is defined.

    PostgreSQL infers the types; if it cannot, the SQL says `CAST(:name AS type)`. JSON is passed as text. `limit` is
    how many seconds to wait for its rows, if that differs from the connection's own limit.
    """

    def __init__(self, text: str, limit: float | None = None) -> None:
        self.text = text
        self.limit = limit
        self.parameters = tuple(dict.fromkeys(_PARAMETER.findall(text)))
        self._names = frozenset(self.parameters)
        self.sql = self.numbered(1)

    def numbered(self, first: int) -> str:
        """The SQL with its parameters numbered from `first`."""
        numbers = {name: number for number, name in enumerate(self.parameters, start=first)}
        return _PARAMETER.sub(lambda match: f"${numbers[match[1]]}", self.text)

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the order of their numbers. Raises `TypeError` for a missing or unknown name."""
        if parameters.keys() != self._names:
            raise TypeError(f"the statement takes {self.parameters}, not {tuple(parameters)}")
        return tuple(map(parameters.__getitem__, self.parameters))


class Writing(Statement):
    """Queries of a WITH clause that write. Those of several repositories can be sent together, in one trip.

    `counted` is the name of the query whose rows are counted as written. Queries do not see each other's writes, and
    PostgreSQL does not define their order: queries that are sent together must not write the same rows.
    """

    def __init__(self, queries: str, counted: str | None = None) -> None:
        super().__init__(queries)
        self.counted = counted
        self.sql = _joined_writings((self,))


@dataclass(frozen=True, slots=True)
class Write:
    """A writing with its parameters. `wanted` is the number of rows that it must write, if known."""

    writing: Writing
    parameters: Mapping[str, Any]
    wanted: int | None = None


class Reading(Statement):
    """Queries of a WITH clause that read or lock. Those of several repositories can be sent together, in one trip.

    `results` names the queries whose rows are wanted, in the order in which they run, with their columns. All see the
    database as it was when the statement began, but rows that are locked are read in their latest version.
    """

    def __init__(self, queries: str, results: Mapping[str, Sequence[str]]) -> None:
        super().__init__(queries)
        self.results = results
        self.sql = _joined_readings((self,))


@dataclass(frozen=True, slots=True)
class Read(Generic[FoundT]):
    """A reading with its parameters, and a function that turns the rows of its results into a value."""

    reading: Reading
    parameters: Mapping[str, Any]
    make: Callable[[Results], FoundT]


def waiting_at_most(seconds: float) -> Read[None]:
    """Limit how long later statements of the transaction wait for a lock, as a part of a longer read."""
    return Read(_LIMIT_WAITS, {"lock_timeout": f"{seconds * 1000:.0f}ms"}, lambda _: None)


def array_of(column: "Column[Any]", parameter: str) -> str:
    """A parameter that has the column's values, one for each row: what `unnest` takes.

    Its type has no length and no precision: a cast to those would cut a value short instead of refusing it.
    """
    kind = _SIZE.sub("", column.type.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    return f"CAST(:{parameter} AS {kind}[])"


def without_waiting(queries: str) -> str:
    """The queries, changed so that their locks skip rows that another transaction has locked."""
    assert _LOCK in queries, "no query locks anything"
    return queries.replace(_LOCK, f"{_LOCK} SKIP LOCKED")


class Sql:
    """Runs statements on the connection, and in the transaction, of a session.

    The first statement of a transaction goes through a cursor of SQLAlchemy, which begins the transaction and finds out
    whether the pooled connection is still alive. The others go straight to the driver: a third of the CPU time each
    (`docs/decisions/0004-set-based-sql-on-hot-paths.md`). Errors are SQLAlchemy's either way.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._driver: Connection | None = None

    @classmethod
    def of(cls, session: AsyncSession) -> "Sql":
        """The instance of this session."""
        found = session.info.get("sql")
        if found is None:
            found = session.info["sql"] = cls(session)
        assert isinstance(found, Sql)
        return found

    @staticmethod
    def forget(session: AsyncSession) -> None:
        """Separate the session from its instance: as a cycle, both would stay until the next garbage collection."""
        session.info.pop("sql", None)

    def release(self) -> None:
        """Forget the connection, since the transaction ends."""
        self._driver = None

    async def driver(self) -> Connection:
        """The session's connection at the level of the driver."""
        return self._driver or await driver_of(await self._session.connection())

    async def fetch(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        """The rows that the statement returns."""
        return await self._fetch(statement.sql, statement.arguments(parameters), statement.limit)

    async def run(self, statement: Statement, **parameters: Any) -> int:
        """Run a statement that returns no rows; returns the number of rows written."""
        arguments = statement.arguments(parameters)
        driver = self._driver
        if driver is None:
            return (await self._first(statement.sql, arguments))[1]
        _check_transaction(driver)
        try:
            with traced(statement.sql):
                status = await driver.execute(statement.sql, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise await self._wrapped(driver, error, statement.sql) from error
        number = _STATUS.search(status)
        return int(number[1]) if number else 0

    @overload
    async def read(self, one: Read[FoundT], /) -> tuple[FoundT]: ...

    @overload
    async def read(self, one: Read[FoundT], other: Read[OtherT], /) -> tuple[FoundT, OtherT]: ...

    @overload
    async def read(self, *reads: Read[Any]) -> tuple[Any, ...]: ...

    async def read(self, *reads: Read[Any]) -> tuple[Any, ...]:
        """Run these reads in this order, in one trip."""
        statement = _joined_readings(tuple(one.reading for one in reads))
        (row,) = await self._fetch(statement, _arguments(reads))
        values = iter(row.values())
        found = []
        for one in reads:
            # Each column is one array, or None if there are no rows.
            columns = ([next(values) or () for _ in names] for names in one.reading.results.values())
            found.append(one.make([list(zip(*result, strict=True)) for result in columns]))
        return tuple(found)

    async def write(self, *writes: Write) -> list[int]:
        """Run these writes in one trip; returns the number of rows written by each, 0 for one that is not counted.

        A writing that occurs again takes another trip, after those before it. Raises `RuntimeError` if the number of
        rows written is not the one wanted: the transaction must not be committed then.
        """
        written: list[int] = []
        for together in _without_repetition(writes):
            statement = _joined_writings(tuple(one.writing for one in together))
            (row,) = await self._fetch(statement, _arguments(together))
            written += row.values()
        for one, number in zip(writes, written, strict=True):
            if one.wanted not in (None, number):
                raise RuntimeError(f"{number} rows were written instead of {one.wanted}: {one.writing.text}")
        return written

    async def run_together(self, *statements: Statement) -> None:
        """Run statements without parameters in this order, in one trip."""
        if self._driver is not None:
            # Without arguments, the driver sends the text as it is.
            statements = (Statement("; ".join(statement.sql for statement in statements)),)
        for statement in statements:
            await self.run(statement)

    async def stream(self, statement: Statement, **parameters: Any) -> AsyncIterator[Row]:
        """The rows that the statement returns, through a server-side cursor: a few hundred in memory at a time.

        It cannot be the first statement of a transaction. These statements are not logged.
        """
        arguments = statement.arguments(parameters)
        driver = await self.driver()
        _check_transaction(driver)
        try:
            async for row in driver.cursor(statement.sql, *arguments, prefetch=_FETCHED):
                yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise await self._wrapped(driver, error, statement.sql) from error

    async def _fetch(self, sql: str, arguments: tuple[Any, ...], limit: float | None = None) -> Sequence[Row]:
        driver = self._driver
        if driver is None:
            return (await self._first(sql, arguments))[0]
        _check_transaction(driver)
        try:
            with traced(sql):
                return await driver.fetch(sql, *arguments, timeout=limit)  # type: ignore[no-any-return]
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise await self._wrapped(driver, error, sql) from error

    async def _first(self, sql: str, arguments: tuple[Any, ...]) -> tuple[Sequence[Row], int]:
        """The rows that it returns, and the number of rows that it wrote."""
        rows, number, self._driver = await self._session.run_sync(_execute, sql, arguments)
        return rows, number

    async def _wrapped(self, driver: Connection, error: Exception, sql: str) -> DBAPIError:
        """The driver's error as SQLAlchemy would raise it. A lost connection is invalidated, as SQLAlchemy would do."""
        redact(error)
        state = getattr(error, "sqlstate", None) or ""
        lost = driver.is_closed() or isinstance(error, OSError) or state == READ_ONLY
        if lost:
            driver.terminate()
            connection = await self._session.connection()
            if not concerns_one_session(error):
                PoolGuard.of(connection.sync_engine).distrust()
            # Otherwise the session would try to roll back on it, and that error would hide this one.
            await connection.invalidate(error)
        kinds: dict[str, type[DBAPIError]] = {"22": DataError, "23": IntegrityError}
        kind = OperationalError if lost else kinds.get(state[:2], InternalError)
        return kind(sql, None, error, connection_invalidated=lost)


@lru_cache
def _joined_writings(writings: tuple[Writing, ...]) -> str:
    """One statement for several writings; it returns a column with the number of rows written by each."""
    counts = [f"(SELECT count(*) FROM {one.counted})" if one.counted else "0" for one in writings]  # noqa: S608
    columns = (f"{count} AS written_{number}" for number, count in enumerate(counts))
    return f"{_with(writings)} SELECT {', '.join(columns)}"


@lru_cache
def _joined_readings(readings: tuple[Reading, ...]) -> str:
    """One statement for several readings; it returns one row with an array for each column of each result.

    That takes the driver a third of the time that a union of the differently shaped rows would take. The arrays are
    evaluated in order, and PostgreSQL runs a query when its rows are first needed.
    """
    gathered, values = [], []
    for name, columns in (result for one in readings for result in one.results.items()):
        arrays = (f"array_agg({column}) AS value_{number}" for number, column in enumerate(columns))
        gathered.append(f"all_{name} AS MATERIALIZED (SELECT {', '.join(arrays)} FROM {name})")  # noqa: S608
        values += [
            f"(SELECT value_{number} FROM all_{name}) AS {name}_{number}"  # noqa: S608
            for number in range(len(columns))
        ]
    return f"{_with(readings)}, {', '.join(gathered)} SELECT {', '.join(values)}"


def _without_repetition(writes: Sequence[Write]) -> list[list[Write]]:
    parts: list[list[Write]] = [[]]
    for one in writes:
        if any(one.writing is other.writing for other in parts[-1]):
            parts.append([])
        parts[-1].append(one)
    return parts


def _with(parts: Sequence[Statement]) -> str:
    queries = []
    first = 1
    for part in parts:
        queries.append(part.numbered(first))
        first += len(part.parameters)
    return f"WITH {', '.join(queries)}"


def _arguments(parts: Sequence[Write | Read[Any]]) -> tuple[Any, ...]:
    values: list[Any] = []
    for part in parts:
        statement = part.writing if isinstance(part, Write) else part.reading
        values += statement.arguments(part.parameters)
    return tuple(values)


def _execute(session: Session, sql: str, arguments: tuple[Any, ...]) -> tuple[Sequence[Row], int, Connection | None]:
    """Run it on SQLAlchemy's connection, in one switch to its synchronous side.

    Its result object is left out: describing each column costs more than the statement. It is used only if statements
    are logged or listened to. If they are logged, no driver is returned, so that all others go through SQLAlchemy, too.
    """
    connection = session.connection()
    if connection.engine.echo or connection.engine.dispatch.before_cursor_execute:
        return _execute_for_listeners(connection, sql, arguments)
    pooled = connection.connection
    cursor = pooled.cursor()
    try:
        cursor.execute(sql, arguments)
    except BaseException as error:  # noqa: BLE001  (it is raised again)
        # What SQLAlchemy does with an error of any statement: it asks our listeners what has become of the connection.
        connection._handle_dbapi_exception(error, sql, None, cursor, None)
    # The driver's own rows, as the other statements return them.
    rows: Sequence[Any] = cursor.fetchall()
    return rows, cursor.rowcount, pooled.driver_connection


def _execute_for_listeners(
    connection: SqlConnection, sql: str, arguments: tuple[Any, ...]
) -> tuple[Sequence[Row], int, Connection | None]:
    result = connection.exec_driver_sql(sql, arguments)
    number = result.rowcount
    rows: Sequence[Any] = result.cursor.fetchall() if result.returns_rows and result.cursor else ()
    result.close()
    return rows, number, None if connection.engine.echo else connection.connection.driver_connection


def _check_transaction(driver: Connection) -> None:
    # A failed flush rolls the whole transaction back: later statements would be committed one by one.
    if not (driver.is_in_transaction() or driver.is_closed()):
        raise RuntimeError("the transaction has ended; open a new unit of work")


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's five-character error code; None if the server sent none."""
    return getattr(error.orig, "sqlstate", None)


def objects_to_rows(error: DBAPIError) -> bool:
    """Whether the database refused what was to be written. A savepoint before it leaves the transaction usable.

    False if the server cannot work, the statement met contention or took too long, or the connection is lost.
    """
    return (sqlstate(error) or "").startswith(_OBJECTIONS)


def constraint_of(error: DBAPIError) -> str | None:
    """The name of the constraint, unique index or trigger that the server says was violated; None if it names none."""
    return getattr(_driver_error(error), "constraint_name", None)


def detail_of(error: DBAPIError) -> str:
    """What the server adds about the row that it refused, including values of the row; empty if it adds nothing."""
    return row_of(_driver_error(error))


def _driver_error(error: DBAPIError) -> BaseException | None:
    # SQLAlchemy's own errors wrap the driver's.
    return error.orig if isinstance(error.orig, asyncpg.PostgresError) else getattr(error.orig, "__cause__", None)


def violates(error: DBAPIError, constraint: str) -> bool:
    """Whether the database refused the statement because of this constraint or unique index."""
    return constraint_of(error) == constraint


@contextmanager
def unless_taken(constraint: str, taken: DomainError) -> Iterator[None]:
    """Raise `taken` if the block violates this constraint.

    Two concurrent requests may both find a name free; the unique constraint lets only one of them through.
    """
    try:
        yield
    except IntegrityError as error:
        raise taken if violates(error, constraint) else error from error


_LIMIT_WAITS = Reading(
    "limited AS MATERIALIZED (SELECT set_config('lock_timeout', :lock_timeout, true) AS value)",
    results={"limited": ("value",)},
)


class SqlAccess:
    """What every repository has: the unit of work's session, and plain SQL on its connection."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.sql = Sql.of(session)

    @property
    def actor(self) -> str | None:
        """Who acts in this unit of work, as rows record it (`Transaction.act_as`)."""
        actor: str | None = self.session.info.get(ACTOR)
        return actor
