"""A month of the event log as a file: one JSON object per line, compressed with gzip, with a checksum file beside it.

The lines are the output of PostgreSQL's `row_to_json`, ordered by id, so `jsonb_populate_record(NULL::events, line)`
restores the rows. `sha256sum --check` verifies a file. A file gets its name only when it is complete and has been read
back.
"""

import asyncio
import gzip
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.outbox.retention.service import Partition

ROWS = 2000
"""Events per statement, and in memory. A long statement would hold a snapshot, which keeps dead rows in the outbox."""

_CHUNK = 1 << 20
_ABANDONED = 3600.0
"""Seconds without a write after which a draft counts as left over from a crash."""


class ExportFailed(Exception):
    """The file could not be written, or does not read back as written. Nothing may be dropped."""


@dataclass(frozen=True, slots=True)
class Export:
    """A complete file and the number of events in it."""

    path: Path
    events: int


async def export(engine: AsyncEngine, partition: Partition, folder: Path) -> Export:
    """Write the partition to `<schema>.<partition>.jsonl.gz`, unless it is already there and complete.

    Safe to repeat after a crash at any point. Uses its own short transactions, and memory for `ROWS` events. Raises
    `ExportFailed`.
    """
    async with engine.connect() as connection:
        schema = await connection.scalar(text("SELECT current_schema()"))
        held = await connection.scalar(text(f"SELECT count(*) FROM {partition.name}"))  # noqa: S608
    path = folder / f"{schema}.{partition.name}.jsonl.gz"
    try:
        found = await asyncio.to_thread(_verified, path)
        if found is None or found != held:
            await asyncio.to_thread(_prepare, path)
            with _draft(path) as file:
                events, digest = await _write(engine, partition, file)
                await asyncio.to_thread(_complete, file, path, events, digest)
            found = events
    except (OSError, EOFError, zlib.error) as error:
        raise ExportFailed(f"{path} cannot be written: {error}") from error
    return Export(path, found)


async def _write(engine: AsyncEngine, partition: Partition, file: BinaryIO) -> tuple[int, bytes]:
    """Write the lines; return their number and digest."""
    statement = text(
        f"SELECT id, row_to_json(row)::text AS line FROM {partition.name} AS row"  # noqa: S608
        f" WHERE id > :after ORDER BY id LIMIT {ROWS}"
    )
    count, digest, last = 0, hashlib.sha256(), UUID(int=0)
    # No file name or time in the header, so the same events always produce the same file.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=6) as compressed:
        while True:
            async with engine.connect() as connection:
                rows = (await connection.execute(statement, {"after": last})).all()
            if not rows:
                return count, digest.digest()
            lines = "".join(f"{row.line}\n" for row in rows).encode()
            digest.update(lines)
            await asyncio.to_thread(compressed.write, lines)
            count, last = count + len(rows), rows[-1].id


def _complete(file: BinaryIO, path: Path, events: int, digest: bytes) -> None:
    """Give the file its name when it is on disk and reads back as it was written."""
    file.flush()
    os.fsync(file.fileno())
    draft = Path(file.name)
    if _read(draft) != (events, digest):
        raise ExportFailed(f"{draft} does not read back as it was written")
    draft.replace(path)
    with _draft(_checksum(path)) as checksum:
        checksum.write(f"{_sha256(path)}  {path.name}\n".encode())
        checksum.flush()
        os.fsync(checksum.fileno())
        Path(checksum.name).replace(_checksum(path))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _verified(path: Path) -> int | None:
    """The number of events in the file; None if it is missing or incomplete."""
    try:
        if _checksum(path).read_text().split()[:1] != [_sha256(path)]:
            return None
    except FileNotFoundError:
        return None
    return _read(path)[0]


def _prepare(path: Path) -> None:
    """Create the folder, and delete what crashes left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The checksum of a file that is about to be replaced is worthless.
    _checksum(path).unlink(missing_ok=True)
    for draft in path.parent.glob(f"{path.name}*.part"):
        if draft.stat().st_mtime < time.time() - _ABANDONED:
            draft.unlink(missing_ok=True)


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, deleted unless it is renamed. Each process writes its own."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
        finally:
            Path(file.name).unlink(missing_ok=True)


def _read(path: Path) -> tuple[int, bytes]:
    """The number of lines and the digest of a file's content. Raises what gzip raises if it is damaged."""
    lines, digest = 0, hashlib.sha256()
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK):
            lines += chunk.count(b"\n")
            digest.update(chunk)
    return lines, digest.digest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
