"""The timeline of a worker: one record per committed batch, written by the worker and read while it runs.

All processes of a machine share the monotonic clock, so the records of several workers are on the same timeline.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("<dIIII")


class Batch(NamedTuple):
    """One commit of a worker: `at` on the monotonic clock (seconds), and what it processed."""

    at: float
    processed: int
    watched: int
    """How many of them belong to the watched aggregate."""
    failed: int
    disordered: int
    """Events of this batch that took effect after a later one of the same aggregate."""


class TimelineWriter:
    """The worker's end. A record is written by one system call: a few microseconds per batch."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, batch: Batch) -> None:
        os.write(self._file, _RECORD.pack(*batch))


@dataclass(slots=True)
class Timeline:
    """The reader's end; `batches` are those read so far."""

    path: Path
    batches: list[Batch] = field(default_factory=list)
    processed: int = 0
    failed: int = 0
    disordered: int = 0
    _read: int = 0

    def read(self) -> list[Batch]:
        """The batches since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = len(content) - len(content) % _RECORD.size
        self._read += whole
        new = [Batch(*values) for values in _RECORD.iter_unpack(content[:whole])]
        for batch in new:
            self.processed += batch.processed
            self.failed += batch.failed
            self.disordered += batch.disordered
        self.batches += new
        return new


def rate(batches: Sequence[Batch]) -> float:
    """Events per second from the end of the first batch to the end of the last."""
    if len(batches) < 2:
        raise ValueError("a rate needs at least two batches")
    return sum(batch.processed for batch in batches[1:]) / (batches[-1].at - batches[0].at)


def processed_between(batches: Sequence[Batch], start: float, end: float) -> int:
    """Events of the batches that ended between two times (monotonic seconds)."""
    return sum(batch.processed for batch in batches if start <= batch.at < end)


def rate_between(batches: Sequence[Batch], start: float, end: float) -> float:
    """Events per second of the batches that ended between two times (monotonic seconds)."""
    return processed_between(batches, start, end) / (end - start)
