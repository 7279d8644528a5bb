"""Months of the event log: the bounds of a partition, and the cron job's step that makes the next ones in time.

A UUIDv7 begins with 48 bits of Unix milliseconds (RFC 9562, section 5.7), and PostgreSQL compares UUIDs byte by byte.
So a month is a range of ids, and the id alone is the log's key.
"""

import re
from datetime import UTC, date, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

DEFAULT_PARTITION = "events_default"
"""Takes the events of a month that has no partition, so that writing one never fails."""

_PARTITION = re.compile(r"events_(default|[0-9]{4}_[0-9]{2})", re.ASCII)


def month_bounds(year: int, month: int) -> tuple[UUID, UUID]:
    """The ids of one UTC month: the smallest one in it, and the smallest one after it."""
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return _first_id(year, month), _first_id(*following)


def partition_name(year: int, month: int) -> str:
    """The name of one month's partition."""
    return f"events_{year:04d}_{month:02d}"


def is_partition(name: str) -> bool:
    """Whether a table of that name is one of the log's partitions."""
    return _PARTITION.fullmatch(name) is not None


def months_from(today: date, ahead: int) -> list[tuple[int, int]]:
    """The month of `today` and the next `ahead` ones, as (year, month)."""
    start = today.year * 12 + today.month - 1
    return [(number // 12, number % 12 + 1) for number in range(start, start + ahead + 1)]


async def ensure_partitions(connection: AsyncConnection, months_ahead: int, today: date) -> list[str]:
    """Make the missing partitions from the month of `today` (UTC) to `months_ahead` months later; return their names.

    Safe to repeat, and safe when two run at once: the second waits and finds nothing to do. Writers to the log go on.
    The caller commits, soon: until then others who want to add or drop a partition wait. Needs READ COMMITTED, to see
    what the one before it has committed.
    """
    wanted = {partition_name(*month): month_bounds(*month) for month in months_from(today, months_ahead)}
    if wanted.keys() <= await _existing(connection):
        return []
    # Conflicts with itself, but not with reading or writing: one at a time, and nobody else notices.
    await connection.execute(text("LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE"))
    existing = await _existing(connection)
    missing = [name for name in wanted if name not in existing]
    for name in missing:
        await _add_partition(connection, name, *wanted[name])
    return missing


def _first_id(year: int, month: int) -> UUID:
    milliseconds = int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000
    return UUID(int=milliseconds << 80)


async def _existing(connection: AsyncConnection) -> set[str]:
    # Children of *this* schema's log: a name alone could be found in another schema of the search path.
    statement = text(
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid"
        " WHERE inhparent = 'events'::regclass"
    )
    return set(await connection.scalars(statement))


async def _add_partition(connection: AsyncConnection, name: str, start: UUID, end: UUID) -> None:
    # Made apart and attached: CREATE TABLE ... PARTITION OF would lock the whole log against its writers.
    await connection.execute(text(f"CREATE TABLE {name} (LIKE events INCLUDING ALL)"))
    # Events of that month may have come already, if this job has not run for long; they would forbid the partition.
    # The lock is the one that attaching takes anyway: no further event may slip in after the move.
    await connection.execute(text(f"LOCK TABLE {DEFAULT_PARTITION} IN ACCESS EXCLUSIVE MODE"))
    await connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {DEFAULT_PARTITION} WHERE id >= :start AND id < :end RETURNING *)"  # noqa: S608
            f" INSERT INTO {name} SELECT * FROM moved"
        ),
        {"start": start, "end": end},
    )
    await connection.execute(
        text(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')")
    )
