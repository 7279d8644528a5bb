"""What errors say, without the values of rows: those may be personal, and what an error says goes to logs.

PostgreSQL names the refused row in the `DETAIL` of an error, bad data in its message, and the values of parameters in
its `CONTEXT`. SQLAlchemy adds the parameters, asyncpg the argument that it cannot send, and Pydantic the input.
"""

import re
from collections.abc import Iterator

import asyncpg
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, StatementError

_BAD_DATA = "22"
"""The class of SQLSTATEs whose messages quote the data."""

_BEFORE_DATA = re.compile(r"[^:\"'«»„“”‘’]*")
"""What a message says before the data. It may be translated, with other quotation marks."""

_FACTS = {"sqlstate": "sqlstate", "constraint": "constraint_name", "table": "table_name", "column": "column_name"}
"""What identifies an error, and the driver's name for it."""

_ROW = "_waybill_row"
"""The attribute of a driver's error that keeps what its `DETAIL` said. Nothing prints it."""


def redact(error: BaseException) -> None:
    """Take the values of rows out of a database error, and out of those that it was caused by or occurred in.

    From then on, neither their text nor a traceback shows any. What is left is their type, the message up to the data,
    the SQLSTATE and the names of the constraint, the table and the column. `row_of` still has the `DETAIL`.
    """
    found = list(_related(error))
    if not any(isinstance(one, StatementError | asyncpg.PostgresError) for one in found):
        return
    # The innermost first: the others repeat what it says.
    for one in reversed(found):
        match one:
            case asyncpg.PostgresError():
                _redact_server_error(one)
            case AsyncAdapt_asyncpg_dbapi.Error():
                if one.__cause__ is not None:
                    one.args = (f"{type(one.__cause__)}: {one.__cause__}", *one.args[1:])
                one.detail = None
            case StatementError():
                _redact_statement_error(one)


def row_of(error: BaseException | None) -> str:
    """What the server said about the row that it refused, including values of it; empty if it said nothing."""
    return getattr(error, _ROW, None) or getattr(error, "detail", None) or ""


def text_of(error: BaseException) -> str:
    """What an error says. Of invalid data, which fields are invalid and why."""
    redact(error)
    if isinstance(error, ValidationError):
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        said = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        return f"{error.error_count()} validation errors for {error.title}: {'; '.join(said)}"
    return str(error)


def repr_of(error: BaseException) -> str:
    """The type of an error with what it says, as `repr` shows them."""
    redact(error)
    return f"{type(error).__name__}({text_of(error)!r})" if isinstance(error, ValidationError) else repr(error)


def in_traceback(error: BaseException, traceback: str) -> str:
    """The traceback of a redacted error, without the input of invalid data."""
    for one in _related(error):
        if isinstance(one, ValidationError):
            traceback = traceback.replace(str(one), text_of(one))
    return traceback


def facts_of(error: BaseException) -> dict[str, str]:
    """What identifies a database error: its `sqlstate`, `constraint`, `table` and `column`, as far as it has them."""
    for one in _related(error):
        if isinstance(one, asyncpg.PostgresError):
            return {name: value for name, kept in _FACTS.items() if (value := getattr(one, kept, None))}
    return {}


def _related(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that a traceback of it shows, from the outside in."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, StatementError):
            waiting.append(one.orig)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [one.__cause__, one.__context__]


def _redact_server_error(error: asyncpg.PostgresError) -> None:
    if error.detail:
        setattr(error, _ROW, error.detail)
    error.detail = error.context = None
    if (error.sqlstate or "").startswith(_BAD_DATA) and error.args:
        before = _BEFORE_DATA.match(str(error.args[0]))
        error.args = (before[0].strip() if before and before[0].strip() else "bad data",)
        # The driver itself raises it for an argument that it cannot send, and what it was caused by repeats that.
        _forget_text(error.__cause__)


def _redact_statement_error(error: StatementError) -> None:
    error.hide_parameters = True
    cause = error.orig
    if cause is None:
        return
    if not isinstance(error, DBAPIError):
        # SQLAlchemy could not even make a parameter of the value, which the cause names.
        _forget_text(cause)
    error.args = (f"({type(cause).__module__}.{type(cause).__name__}) {cause}".strip(),)


def _forget_text(error: BaseException | None) -> None:
    while error is not None and not isinstance(error, asyncpg.PostgresError):
        error.args = ()
        error = error.__cause__ or error.__context__
