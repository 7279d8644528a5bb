"""Months of the event log: the bounds of a partition, and the step that lets a cron job create the next ones in time.

A UUIDv7 begins with 48 bits of Unix milliseconds (RFC 9562, section 5.7), and PostgreSQL compares UUIDs byte by byte.
So a month is a range of ids, and the id alone is the log's key.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.fields import id_at, time_of

DEFAULT_PARTITION = "events_default"
"""Holds the events of months without a partition, so that writing an event never fails."""

LOCK_TIMEOUT = "200ms"
"""The timeout for each lock that shuts out claims and writers of the log: they queue behind it while it waits."""

_STATEMENT_TIMEOUT = "1s"
"""The timeout for each statement while such a lock is held."""

MONTHS_AHEAD = 3
"""How many months after the current one have a partition in advance."""

MOST_MOVED = 20_000
"""The most events that are moved out of the default partition while claims and writers wait: well below a second."""

_PARTITION = re.compile(r"events_(default|[0-9]{4}_[0-9]{2})", re.ASCII)


class TooManyStrays(Exception):
    """The default partition holds too many events of a month: moving them would stop the log's writers for too long."""


async def ensure_partitions(connection: AsyncConnection, months_ahead: int, today: date) -> list[str]:
    """Create missing partitions from the month of `today` (UTC) to `months_ahead` months later; return their names.

    Safe to repeat, and safe to run concurrently: the second run waits and finds nothing to do. Attaching a partition
    locks the default partition, and if that holds events of the month, the whole log: claims and writers queue behind
    this lock. So it is waited for only briefly. Raises `DBAPIError` with SQLSTATE 55P03 if it is not granted (try
    again), and `TooManyStrays`. The caller must commit immediately: until then, claims and writers wait, and no one
    else can add or drop a partition. Needs READ COMMITTED, to see what an earlier run has committed.
    """
    return await add_partitions(connection, months_from(today, months_ahead))


async def add_partitions(
    connection: AsyncConnection, months: Sequence[tuple[int, int]], most_moved: int | None = MOST_MOVED
) -> list[str]:
    """Create the missing partitions of these months, as `ensure_partitions` does; return their names.

    With `most_moved=None`, any number of events is moved, however long that takes: only while nothing uses the log.
    """
    months_of = {partition_name(*month): month for month in months}
    wanted = {name: month_bounds(*month) for name, month in months_of.items()}
    if wanted.keys() <= await existing_partitions(connection):
        return []
    # Conflicts with itself, but not with reads or writes: one run at a time, and no one queues behind it.
    await connection.execute(text("SELECT lock_event_log()"))
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    if most_moved is not None:
        await connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'"))
    existing = await existing_partitions(connection)
    missing = [name for name in wanted if name not in existing]
    for name in missing:
        if most_moved is not None:
            await _check_strays(connection, name, *wanted[name], most_moved)
        # By a function of the log's owner: the role of the API and the workers creates no tables. It creates the
        # partition separately and attaches it: CREATE TABLE ... PARTITION OF would lock the whole log against writers.
        # It fails if an event of that month is written meanwhile; the next run moves it.
        year, month = months_of[name]
        await connection.execute(text("SELECT add_event_month(:year, :month)"), {"year": year, "month": month})
    return missing


async def existing_partitions(connection: AsyncConnection) -> set[str]:
    """The names of the log's partitions."""
    # The children of *this* schema's log: a name alone could match a table in another schema of the search path.
    statement = text(
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid"
        " WHERE inhparent = 'events'::regclass"
    )
    return set(await connection.scalars(statement))


def partition_name(year: int, month: int) -> str:
    """The name of one month's partition."""
    return f"events_{year:04d}_{month:02d}"


def is_partition(name: str) -> bool:
    """Whether this is the name of a partition of the log."""
    return _PARTITION.fullmatch(name) is not None


def month_bounds(year: int, month: int) -> tuple[UUID, UUID]:
    """The bounds of one UTC month: the smallest id in it, and the smallest id after it."""
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return _first_id(year, month), _first_id(*following)


def months_from(today: date, ahead: int) -> list[tuple[int, int]]:
    """The month of `today` and the next `ahead` months, as (year, month)."""
    start = today.year * 12 + today.month - 1
    return [(number // 12, number % 12 + 1) for number in range(start, start + ahead + 1)]


def month_of(event_id: UUID) -> tuple[int, int]:
    """The UTC month in which an event's id was made, as (year, month)."""
    moment = time_of(event_id)
    return moment.year, moment.month


async def _check_strays(connection: AsyncConnection, name: str, start: UUID, end: UUID, most_moved: int) -> None:
    """Raises `TooManyStrays`.

    If the job has not run for a while, the default partition may already hold events of the month: they have to move.
    """
    strays = await connection.scalar(
        text(
            f"SELECT count(*) FROM (SELECT FROM {DEFAULT_PARTITION} WHERE id >= :start AND id < :end LIMIT :enough)"  # noqa: S608
            " AS stray"
        ),
        {"start": start, "end": end, "enough": most_moved + 1},
    )
    if strays > most_moved:
        raise TooManyStrays(
            f"{DEFAULT_PARTITION} holds more than {most_moved} events that belong to {name}. Moving them would stop "
            "all writers for a long time: stop the API and the workers, and run `waybill outbox partitions`"
        )


def _first_id(year: int, month: int) -> UUID:
    return id_at(datetime(year, month, 1, tzinfo=UTC))
