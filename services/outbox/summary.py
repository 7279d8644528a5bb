"""What an error says in one line, and what kind of error it is."""

import re
import sys
from traceback import walk_tb
from types import FrameType

from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError

from services.logs import Shown

_LONGEST_MESSAGE = 2000
"""How much of a message is part of the kind of error."""

_BETWEEN = frozenset({"asyncpg", "greenlet", "sqlalchemy", "sqlmodel", *sys.stdlib_module_names})
"""Packages that raise errors for all of their callers alike."""

_VARIABLE = re.compile(
    r"\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b"  # a UUID
    r"|(?<!\w)'[^']*'(?!\w)"
    r'|"[^"]*"'
    r"|\b0x[0-9a-f]+"
    r"|\d+(?:[.,]\d+)*",
    re.IGNORECASE,
)


def summary(error: BaseException) -> str:
    """The type and the message of an error.

    For a database error, these are the driver's, on one line, with the SQLSTATE and the constraint.
    """
    kind, message, *facts = _parts(error)
    known = [f"{name} {value}" for name, value in zip(("SQLSTATE", "constraint"), facts, strict=True) if value]
    return (f"{kind}: {message}" if message else kind) + (f" ({', '.join(known)})" if known else "")


def kind_of(error: BaseException) -> list[str]:
    """What errors of one kind have in common, whatever event failed.

    The error's type, the SQLSTATE and the constraint, the function that raised it, and the message without its variable
    parts: numbers, UUIDs and quoted values. Line numbers are left out: they change with every release.
    """
    kind, message, *facts = _parts(error)
    fixed = _VARIABLE.sub("?", message[:_LONGEST_MESSAGE])
    return [type(error).__qualname__, kind, *facts, _place(error), fixed]


def _parts(error: BaseException) -> tuple[str, str, str, str]:
    """The type, the message, the SQLSTATE and the constraint; the last two are empty unless the database sent them."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if cause is None or not isinstance(error, DBAPIError | PostgresError):
        return type(error).__qualname__, str(Shown(error)).strip(), "", ""
    # SQLAlchemy wraps the driver's error in one of its own; `services.sql` does not.
    if isinstance(cause.__cause__, PostgresError):
        cause = cause.__cause__
    first, *_ = str(Shown(cause)).strip().splitlines() or [""]
    state, constraint = (getattr(cause, name, None) or "" for name in ("sqlstate", "constraint_name"))
    return type(cause).__qualname__, first, state, constraint


def _place(error: BaseException) -> str:
    """The function that raised the error, or that called the library that did."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if not _is_between(frame)]
    for frame in reversed(ours or frames):
        return f"{Shown(frame.f_globals.get('__name__'))}.{frame.f_code.co_qualname}"
    return ""


def _is_between(frame: FrameType) -> bool:
    module = str(Shown(frame.f_globals.get("__name__")))
    return module == "services.sql" or module.partition(".")[0] in _BETWEEN
