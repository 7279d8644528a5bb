"""What a process logs, as the fields of the JSON output: `event`, `level`, and those of the line itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.logs import JsonLines


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._form = JsonLines("test")
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = self._form.fields(record)
        self.lines.append({name: fields[name] for name in fields if name not in {"process", "logger", "timestamp"}})


@contextmanager
def capture_logs(name: str = "worker") -> Iterator[list[dict[str, Any]]]:
    """The lines that the worker, or another package, logs inside the block, at any level."""
    logger, kept = logging.getLogger(name), _Kept()
    level_before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(kept)
    try:
        yield kept.lines
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level_before)
