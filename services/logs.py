"""Structured logging with `logging`, for our own messages and those of libraries.

Fields go into `extra`: `logger.info("expired", extra={"holds": 3})`. `logging` refuses the names of its own attributes
there, such as `name` and `args`.
"""

import asyncio
import json
import logging
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, TypeAlias

from pydantic_core import to_json

from services.redaction import facts_of, in_traceback, redact, repr_of, text_of
from services.settings import LogFormat, Settings

Fields: TypeAlias = Mapping[str, object]
Bound: TypeAlias = tuple[Fields | Callable[[], Fields], ...]

_bound: ContextVar[Bound] = ContextVar("bound", default=())
_OF_LOGGING = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}
_LEVELS = {
    level: name.lower() for name, level in logging.getLevelNamesMapping().items() if name not in ("WARN", "FATAL")
}
_COLORS = {"critical": 31, "error": 31, "warning": 33, "info": 32, "debug": 32}


class Repeats:
    """Decides which of many identical messages are logged: the first, and then one every `seconds`."""

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._said: dict[Hashable, tuple[float, int]] = {}

    def left_out(self, key: Hashable) -> int | None:
        """The number of messages of this kind left out since the last one logged; None if this one is left out, too."""
        now = self._clock()
        said_at, count = self._said.get(key, (None, 0))
        if said_at is not None and now - said_at < self._seconds:
            self._said[key] = (said_at, count + 1)
            return None
        self._said[key] = (now, 0)
        return count


class Shown:
    """A value for a message: its text and its `repr` never raise and can be encoded, whatever the value's own do.

    Those of an error contain no values of rows (`services/redaction.py`).
    """

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return self._text(text_of if isinstance(self._value, BaseException) else str)

    def __repr__(self) -> str:
        return self._text(repr_of if isinstance(self._value, BaseException) else repr)

    def _text(self, show: Callable[[Any], str]) -> str:
        try:
            # Not the method of what it returned: that may be a subclass of `str`.
            return str.encode(show(self._value), "utf-8", "replace").decode()
        except BaseException as error:  # noqa: BLE001  (its code may raise anything)
            kind, raised = (type(one).__name__.encode("utf-8", "replace").decode() for one in (self._value, error))
            return f"<{kind}, whose text cannot be shown: {raised}>"


class RateLimitedLogger:
    """Warnings about what may fail many times a second: logs the first, then one a minute with the number left out.

    Messages are of one kind if their template and the types of the errors among their arguments are the same.
    """

    def __init__(self, logger: logging.Logger, repeats: Repeats | None = None) -> None:
        self._logger = logger
        self._repeats = repeats or Repeats()

    def warning(self, message: str, *args: object) -> None:
        errors = tuple(type(argument) for argument in args if isinstance(argument, BaseException))
        left_out = self._repeats.left_out((message, errors))
        args = tuple(Shown(argument) if isinstance(argument, BaseException) else argument for argument in args)
        if left_out:
            self._logger.warning(message + " (and %d more since this was last logged)", *args, left_out)
        elif left_out == 0:
            self._logger.warning(message, *args)


def traceback_of(error: BaseException) -> str:
    """The traceback of an error and of its causes, without values of rows or variables.

    Raises whatever the error's own code raises.
    """
    redact(error)
    return in_traceback(error, "".join(traceback.format_exception(error)))


def bind(**fields: object) -> Token[Bound]:
    """Add fields to each line that this task logs, and the tasks that it starts, until `unbind`.

    Fields that are None are left out.
    """
    return _bound.set((*_bound.get(), fields))


def bind_from(source: Callable[[], Fields]) -> Token[Bound]:
    """The same with fields that are only found out when a line is logged, which most requests never do."""
    return _bound.set((*_bound.get(), source))


def unbind(token: Token[Bound]) -> None:
    _bound.reset(token)


def bound() -> dict[str, object]:
    """The fields that are bound now; of those with the same name, the innermost."""
    fields: dict[str, object] = {}
    for one in _bound.get():
        fields.update(one() if callable(one) else one)
    return {name: value for name, value in fields.items() if value is not None}


class JsonLines(logging.Formatter):
    """One JSON object for each line; `process` is one of its fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._encode = json.JSONEncoder(default=lambda value: repr(Shown(value)), separators=(",", ":")).encode

    def format(self, record: logging.LogRecord) -> str:
        return self.line(self.fields(record))

    def line(self, fields: dict[str, object]) -> str:
        """The line with these fields. In JSON, every character that is not plain ASCII is escaped."""
        return self._encode(fields)

    def quick_line(self, fields: dict[str, object]) -> str:
        """The same for fields with plain values, in an eighth of the time."""
        encoded = to_json(fields)
        return encoded.decode() if encoded.isascii() and b"\x7f" not in encoded else self.line(fields)

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """What a line says: its message as `event`, when, where and how bad, what was bound, and what is in `extra`."""
        extra = {name: value for name, value in record.__dict__.items() if name not in _OF_LOGGING}
        fields = self.made(
            _message(record), record.levelname.lower(), record.name, record.created, {**bound(), **extra}
        )
        for error in _errors_of(record):
            fields = {**facts_of(error), **fields}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._traceback(record.exc_info[1])
        if record.stack_info:
            fields["stack_info"] = record.stack_info
        return fields

    def made(self, event: str, level: str, logger: str, created: float, more: Fields) -> dict[str, object]:
        """The fields of a line. `created` is in seconds since the epoch."""
        timestamp = datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds")
        return {
            "event": event,
            "process": self._process,
            "level": level,
            "logger": logger,
            "timestamp": timestamp.replace("+00:00", "Z"),
            **more,
        }

    def _traceback(self, error: BaseException) -> str:
        try:
            return traceback_of(error).rstrip("\n")
        except BaseException:  # noqa: BLE001  (it runs the error's own code, which may raise anything)
            return repr(Shown(error))


class ConsoleLines(JsonLines):
    """Lines for people to read, a traceback below its line."""

    def __init__(self, process: str, *, colors: bool) -> None:
        super().__init__(process)
        self._colors = colors

    def quick_line(self, fields: dict[str, object]) -> str:
        return self.line(fields)

    def line(self, fields: dict[str, object]) -> str:
        timestamp, event, level, logger = (str(fields.pop(name)) for name in ("timestamp", "event", "level", "logger"))
        below = [_plain(str(fields.pop(name))) for name in ("stack_info", "exception") if name in fields]
        # Whatever a message contains, it must not look like a line of its own.
        event = _plain(event).replace("\n", "\n    ")
        padded = f"{level:<9}"
        if self._colors:
            padded = f"\x1b[{_COLORS.get(level, 0)}m{padded}\x1b[0m"
        pairs = [f"{name}={_readable(value)}" for name, value in sorted(fields.items())]
        return "\n".join([" ".join([timestamp, f"[{padded}]", f"{event:<30}", f"[{logger}]", *pairs]), *below])


def _errors_of(record: logging.LogRecord) -> list[BaseException]:
    """The errors that a line is about, whether they are arguments of its message, in `extra`, or being handled."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    raised = record.exc_info[1] if record.exc_info else None
    found = [*arguments, *record.__dict__.values(), raised]
    return [one for one in found if isinstance(one, BaseException)]


def _message(record: logging.LogRecord) -> str:
    try:
        if isinstance(record.args, tuple) and any(isinstance(one, BaseException) for one in record.args):
            return str(record.msg) % tuple(Shown(one) if isinstance(one, BaseException) else one for one in record.args)
        return record.getMessage()
    except BaseException as error:  # noqa: BLE001  (an argument's code may raise anything)
        return f"{record.msg} (its arguments cannot be shown: {Shown(error)!r})"


def _readable(value: object) -> str:
    """A string as it is; in quotes, with escapes, where one could not see its end or what it contains."""
    if isinstance(value, str) and value.isprintable() and not set(value) & set(" =\"'"):
        return value
    return repr(Shown(value))


def _plain(text: str) -> str:
    """The text with control characters escaped, which could change what a terminal shows, except tabs and new lines."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to standard error, and before each those that `log_quickly` has left for it."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(lines)
        self.lines = lines
        self._left: deque[str] = deque()

    def leave(self, line: str) -> None:
        """Write this line in the next round of the event loop, together with all others that were left until then."""
        self._left.append(line)
        if len(self._left) == 1:
            asyncio.get_running_loop().call_soon(self.write_left)

    def emit(self, record: logging.LogRecord) -> None:
        if self._left:
            self.write_left()
        super().emit(record)

    def flush(self) -> None:
        if self._left:
            self.write_left()
        super().flush()

    def write_left(self) -> None:
        # As in `emit`, nothing can be logged about a standard error that cannot be written to.
        with suppress(OSError, ValueError):
            self.acquire()
            try:
                while self._left:
                    self.stream.write(self._left.popleft() + "\n")
                self.stream.flush()
            finally:
                self.release()


def log_quickly(logger: logging.Logger, level: int, event: str, fields: Fields) -> None:
    """Log a line as `logger.log` does with `extra`, at a third of the cost. To be called in an event loop.

    What is bound is left out. If others have handlers as well, or there is none of ours, the line goes the usual way.
    """
    if not logger.isEnabledFor(level):
        return
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handlers[0], _Handler) and not logger.handlers:
        lines = handlers[0].lines
        handlers[0].leave(lines.quick_line(lines.made(event, _LEVELS[level], logger.name, time(), fields)))
    else:
        logger.log(level, event, extra=fields)


def configure_logging(settings: Settings, process: str) -> None:
    """Send every log line of the process to standard error, as JSON or for people to read."""
    as_json = settings.log_format is LogFormat.json
    handler = _Handler(JsonLines(process) if as_json else ConsoleLines(process, colors=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # Pydantic warns of a value that a reply should not have, with the value, on standard error.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    # ARQ logs the start and end of every job at INFO, several times a minute.
    logging.getLogger("arq").setLevel(
        max(logging.WARNING, root.level) if root.level != logging.DEBUG else logging.DEBUG
    )
