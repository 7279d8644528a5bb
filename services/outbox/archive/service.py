"""A month of the event log as a file: one JSON object per line, compressed with gzip, with a checksum file beside it.

The lines are the output of PostgreSQL's `row_to_json`, ordered by id, so `jsonb_populate_record(NULL::events, line)`
restores the rows. `sha256sum --check` verifies a file. A file gets its name only when it is complete and has been read
back. The name includes the database and a digest of the lines, so databases that export into one folder never replace
or accept each other's files, even if they have the same name.
"""

import asyncio
import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.outbox.retention.service import Partition

ROWS = 2000
"""Events per statement, and in memory. A long statement would hold a snapshot, which keeps dead rows in the outbox."""

_CHUNK = 1 << 20
_SUFFIX = ".jsonl.gz"
_SHOWN = 16
"""Hexadecimal digits of the digest in a file's name."""

_ABANDONED = 3600.0
"""Seconds without a write after which a draft counts as left over from a crash."""


class ExportFailed(Exception):
    """The file could not be written, or does not read back as written. Nothing may be dropped."""


@dataclass(frozen=True, slots=True)
class Export:
    """A complete file and the number of events in it."""

    path: Path
    events: int


@dataclass(frozen=True, slots=True)
class _Content:
    """The number of lines and their SHA-256."""

    events: int
    digest: str


class _Counted:
    """Counts and digests lines as they pass."""

    def __init__(self) -> None:
        self._events = 0
        self._digest = hashlib.sha256()

    def add(self, lines: bytes, number: int) -> None:
        self._events += number
        self._digest.update(lines)

    @property
    def content(self) -> _Content:
        return _Content(self._events, self._digest.hexdigest())


async def export(engine: AsyncEngine, partition: Partition, folder: Path) -> Export:
    """Write the partition to `<database>.<schema>.<partition>.<digest>.jsonl.gz`, unless exactly that is already there.

    Safe to repeat after a crash at any point. Uses its own short transactions, and memory for `ROWS` events. Raises
    `ExportFailed`.
    """
    async with engine.connect() as connection:
        names = (await connection.execute(text("SELECT current_database(), current_schema()"))).one()
    prefix = ".".join([*(quote(name, safe="") for name in names), partition.name])
    try:
        found = await asyncio.to_thread(_exists, folder, prefix)
        if found:
            content = await _digest(engine, partition)
            path = folder / _name(prefix, content)
            found = await asyncio.to_thread(_holds, path, content)
        if not found:
            with _draft(folder, prefix) as file:
                await asyncio.to_thread(_clear, file, prefix)
                content = await _write(engine, partition, file)
                path = folder / _name(prefix, content)
                await asyncio.to_thread(_complete, file, path, content)
    except OSError as error:
        raise ExportFailed(f"{folder / prefix} cannot be written: {error}") from error
    return Export(path, content.events)


async def _digest(engine: AsyncEngine, partition: Partition) -> _Content:
    """What the file of this partition must contain."""
    counted = _Counted()
    async for lines, number in _lines(engine, partition):
        counted.add(lines, number)
    return counted.content


async def _write(engine: AsyncEngine, partition: Partition, file: BinaryIO) -> _Content:
    """Write the lines; returns what was written."""
    counted = _Counted()
    # No file name or time in the header, so the same events always produce the same file.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=6) as compressed:
        async for lines, number in _lines(engine, partition):
            counted.add(lines, number)
            await asyncio.to_thread(compressed.write, lines)
    return counted.content


async def _lines(engine: AsyncEngine, partition: Partition) -> AsyncIterator[tuple[bytes, int]]:
    """The partition's events in pieces: their lines and their number."""
    statement = text(
        f"SELECT id, row_to_json(row)::text AS line FROM {partition.name} AS row"  # noqa: S608
        f" WHERE id > :after ORDER BY id LIMIT {ROWS}"
    )
    last = UUID(int=0)
    while True:
        async with engine.connect() as connection:
            rows = (await connection.execute(statement, {"after": last})).all()
        if not rows:
            return
        yield "".join(f"{row.line}\n" for row in rows).encode(), len(rows)
        last = rows[-1].id


def _complete(file: BinaryIO, path: Path, content: _Content) -> None:
    """Give the file its name when it is on disk and reads back as it was written."""
    file.flush()
    os.fsync(file.fileno())
    draft = Path(file.name)
    if _read(draft) != content:
        raise ExportFailed(f"{draft} does not read back as it was written")
    draft.replace(path)
    _write_checksum(path)


def _write_checksum(path: Path) -> None:
    checksum = path.with_name(f"{path.name}.sha256")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _draft(path.parent, checksum.name) as draft:
        draft.write(f"{digest}  {path.name}\n".encode())
        draft.flush()
        os.fsync(draft.fileno())
        Path(draft.name).replace(checksum)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exists(folder: Path, prefix: str) -> bool:
    """Create the folder; returns whether it has an export of that prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    return any(folder.glob(f"{escape(prefix)}.*{_SUFFIX}"))


def _holds(path: Path, content: _Content) -> bool:
    """Whether the file is there with exactly this content. A checksum that is missing is written again."""
    try:
        if _read(path) != content:
            return False
    except (OSError, EOFError, zlib.error):
        return False
    _write_checksum(path)
    return True


def _clear(mine: BinaryIO, prefix: str) -> None:
    """Delete drafts that a crash left behind. `mine` is a new one: its time is that of the folder's file system."""
    draft = Path(mine.name)
    for other in draft.parent.glob(f"{escape(prefix)}.*.part"):
        if other.stat().st_mtime < draft.stat().st_mtime - _ABANDONED:
            other.unlink(missing_ok=True)


@contextmanager
def _draft(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A new file in the folder, deleted unless it is renamed. Each process writes its own."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}.", suffix=".part", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
        finally:
            Path(file.name).unlink(missing_ok=True)


def _read(path: Path) -> _Content:
    """What a file contains. Raises what gzip raises if it is damaged."""
    counted = _Counted()
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK):
            counted.add(chunk, chunk.count(b"\n"))
    return counted.content


def _name(prefix: str, content: _Content) -> str:
    return f"{prefix}.{content.digest[:_SHOWN]}{_SUFFIX}"
