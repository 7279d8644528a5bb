"""Structured logs, for our own lines and the libraries' alike."""

import logging
import sys
from collections.abc import Callable, Hashable
from time import monotonic

import structlog

from services.settings import LogFormat, Settings


class Repeats:
    """Decides which of many equal messages are logged: the first, and then one every `seconds`."""

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._said: dict[Hashable, tuple[float, int]] = {}

    def left_out(self, key: Hashable) -> int | None:
        """How many messages of this kind were left out since the last one logged; None: leave this one out, too."""
        now = self._clock()
        said_at, count = self._said.get(key, (None, 0))
        if said_at is not None and now - said_at < self._seconds:
            self._said[key] = (said_at, count + 1)
            return None
        self._said[key] = (now, 0)
        return count


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
        if left_out:
            self._logger.warning(message + " (and %d more since this was last logged)", *args, left_out)
        elif left_out == 0:
            self._logger.warning(message, *args)


def configure_logging(settings: Settings, process: str) -> None:
    """Send every log line of the process to standard error, as JSON or for people to read."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    as_json = settings.log_format is LogFormat.json
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer() if as_json else _console()
    errors: list[structlog.typing.Processor] = [structlog.processors.format_exc_info] if as_json else []
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *errors, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # ARQ says every job's start and end on INFO, several times a minute.
    logging.getLogger("arq").setLevel(
        max(logging.WARNING, root.level) if root.level != logging.DEBUG else logging.DEBUG
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def _console() -> structlog.dev.ConsoleRenderer:
    # Plain tracebacks: the rich ones print local variables, and some of those are passwords.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
