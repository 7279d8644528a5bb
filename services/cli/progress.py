"""The progress of a long command, on stderr: a bar on a terminal, otherwise a plain line from time to time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance: TypeAlias = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Shows phases; they may overlap."""

    def phase(self, name: str, total: int) -> Advance:
        """Begin a phase of `total` steps. Call the result with the number of steps done since the last call."""


@contextmanager
def open_display(*, quiet: bool) -> Iterator[Display]:
    """A bar on a terminal; otherwise plain lines, or nothing if `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield Lines(sys.stderr.write if not quiet else lambda _: None)
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress)


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, total: int) -> Advance:
        task = self._progress.add_task(name, total=total)
        return lambda steps: self._progress.advance(task, steps)


class Lines:
    """A line when a phase ends, and from time to time before that."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock

    def phase(self, name: str, total: int) -> Advance:
        done = 0
        said = self._clock()

        def advance(steps: int) -> None:
            nonlocal done, said
            done += steps
            if done == total or self._clock() - said >= _SECONDS_BETWEEN_LINES:
                said = self._clock()
                self._write(f"{name}: {done:,} of {total:,}\n")

        return advance
