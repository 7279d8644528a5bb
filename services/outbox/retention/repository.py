"""Months of the event log: the bounds of a partition, and the cron job's step that makes the next ones in time.

A UUIDv7 begins with 48 bits of Unix milliseconds (RFC 9562, section 5.7), and PostgreSQL compares UUIDs byte by byte.
So a month is a range of ids, and the id alone is the log's key.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

DEFAULT_PARTITION = "events_default"
"""Takes the events of a month that has no partition, so that writing one never fails."""

_PARTITION = re.compile(r"events_(default|[0-9]{4}_[0-9]{2})", re.ASCII)


async def ensure_partitions(connection: AsyncConnection, months_ahead: int, today: date) -> list[str]:
    """Make the missing partitions from the month of `today` (UTC) to `months_ahead` months later; return their names.

    Safe to repeat, and safe when two run at once: the second waits and finds nothing to do. Writers to the log go on,
    unless the default partition holds events of such a month: they are kept out while those move. The caller commits,
    soon: until then others who want to add or drop a partition wait. Needs READ COMMITTED, to see what the one before
    it has committed.
    """
    return await add_partitions(connection, months_from(today, months_ahead))


async def add_partitions(connection: AsyncConnection, months: Sequence[tuple[int, int]]) -> list[str]:
    """Make the missing ones of these months' partitions, as `ensure_partitions` does; return their names."""
    wanted = {partition_name(*month): month_bounds(*month) for month in months}
    if wanted.keys() <= await existing_partitions(connection):
        return []
    # Conflicts with itself, but not with reading or writing: one at a time, and nobody else notices.
    await connection.execute(text("LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE"))
    existing = await existing_partitions(connection)
    missing = [name for name in wanted if name not in existing]
    for name in missing:
        await _add_partition(connection, name, *wanted[name])
    return missing


async def existing_partitions(connection: AsyncConnection) -> set[str]:
    """The names of the log's partitions."""
    # Children of *this* schema's log: a name alone could be found in another schema of the search path.
    statement = text(
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid"
        " WHERE inhparent = 'events'::regclass"
    )
    return set(await connection.scalars(statement))


def partition_name(year: int, month: int) -> str:
    """The name of one month's partition."""
    return f"events_{year:04d}_{month:02d}"


def is_partition(name: str) -> bool:
    """Whether a table of that name is one of the log's partitions."""
    return _PARTITION.fullmatch(name) is not None


def month_bounds(year: int, month: int) -> tuple[UUID, UUID]:
    """The ids of one UTC month: the smallest one in it, and the smallest one after it."""
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return _first_id(year, month), _first_id(*following)


def months_from(today: date, ahead: int) -> list[tuple[int, int]]:
    """The month of `today` and the next `ahead` ones, as (year, month)."""
    start = today.year * 12 + today.month - 1
    return [(number // 12, number % 12 + 1) for number in range(start, start + ahead + 1)]


def month_of(event_id: UUID) -> tuple[int, int]:
    """The UTC month in which an event's id was made, as (year, month)."""
    moment = datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)
    return moment.year, moment.month


def id_at(moment: datetime) -> UUID:
    """Smaller than every id made from that moment on, and larger than those made before. No id is from before 1970."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


async def _add_partition(connection: AsyncConnection, name: str, start: UUID, end: UUID) -> None:
    bounds = {"start": start, "end": end}
    # Events of that month may have come already, if this job has not run for long; they would forbid the partition.
    if await connection.scalar(
        text(f"SELECT EXISTS (SELECT FROM {DEFAULT_PARTITION} WHERE id >= :start AND id < :end)"),  # noqa: S608
        bounds,
    ):
        # Whoever has planned a query of the log without the new partition must not run it when they have moved there:
        # a reader of the log would skip them for ever. What cannot be had soon is left to the next run.
        await connection.execute(text("SET LOCAL lock_timeout = '2s'"))
        await connection.execute(text("LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE"))
    # Made apart and attached: CREATE TABLE ... PARTITION OF would lock the whole log against its writers.
    await connection.execute(text(f"CREATE TABLE {name} (LIKE events INCLUDING ALL)"))
    await connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {DEFAULT_PARTITION} WHERE id >= :start AND id < :end RETURNING *)"  # noqa: S608
            f" INSERT INTO {name} SELECT * FROM moved"
        ),
        bounds,
    )
    # Refused where another event of that month has come since: the next run moves it.
    await connection.execute(
        text(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')")
    )


def _first_id(year: int, month: int) -> UUID:
    return id_at(datetime(year, month, 1, tzinfo=UTC))
