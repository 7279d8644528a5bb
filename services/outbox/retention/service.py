"""Retention of the event log: find partitions that are old enough, check what still needs them, and drop them.

Each function is one step in the caller's transaction. `worker/jobs/retention.py` runs the steps, and may be stopped
between any two. Events that have not been processed are never dropped: the check and the drop are one transaction,
during which no event can be written to the partition.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.fields import id_at
from services.outbox.origin import service as origin
from services.outbox.retention.repository import (
    DEFAULT_PARTITION,
    LOCK_TIMEOUT,
    existing_partitions,
    month_bounds,
    month_of,
    partition_name,
)
from services.sql import LOCK_NOT_AVAILABLE, sqlstate

ATTEMPTS = 20
_PAUSE = 0.5
"""Average seconds between two attempts: claims and the log's writers catch up in the meantime."""

ResultT = TypeVar("ResultT")

# A dead letter that is being replayed is always in one of the two tables, so a single statement finds it.
_NEEDED = """
    SELECT
        (SELECT count(*) FROM outbox WHERE event_id >= :start AND event_id < :end) AS waiting,
        (SELECT count(*) FROM dead_letters WHERE event_id >= :start AND event_id < :end) AS dead,
        ARRAY(
            SELECT name FROM log_consumers WHERE EXISTS (
                SELECT FROM {partition} AS unread
                WHERE unread.transaction_id >= pg_snapshot_xmin(seen)
                AND NOT pg_visible_in_snapshot(unread.transaction_id, seen)
                AND (
                    reading IS NULL OR unread.position > log_consumers.position
                    OR NOT pg_visible_in_snapshot(unread.transaction_id, reading)
                )
            ) ORDER BY name
        ) AS consumers
"""


# A transaction that hands events out to another database changes these rows: it waits until the month is dropped, or is
# finished first, and then its consumer's place is the one that counts here.
_LOCK_SINKS = "SELECT FROM log_sinks ORDER BY name FOR UPDATE"

_NOTE_DROPPED = """
    UPDATE log_sinks SET
        dropped_transaction_id = greatest(
            dropped_transaction_id, (SELECT transaction_id FROM {partition} ORDER BY transaction_id DESC LIMIT 1)
        ),
        dropped_position = greatest(dropped_position, (SELECT max(position) FROM {partition}))
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """One month of the log."""

    year: int
    month: int

    @property
    def name(self) -> str:
        return partition_name(self.year, self.month)


@dataclass(frozen=True, slots=True)
class Needed:
    """What still needs a partition: the number of outbox rows and dead letters, and the consumers yet to read it."""

    waiting: int
    dead: int
    consumers: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.waiting or self.dead or self.consumers)

    def __str__(self) -> str:
        reasons = [
            (self.waiting, f"{self.waiting} events wait in the outbox"),
            (self.dead, f"{self.dead} dead letters"),
            (self.consumers, f"unread by {', '.join(self.consumers)}"),
        ]
        return "; ".join(said for there, said in reasons if there)


class Changed(Exception):
    """The number of events in the partition is not the number that was exported."""


async def patiently(engine: AsyncEngine, step: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
    """Run a step that locks the log, in its own transaction; without the lock, retry for about ten seconds.

    Each attempt waits only briefly, so that claims and writers do not queue behind it for long. Raises what the last
    attempt raises; other errors are raised immediately.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                return await step(connection)
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE or attempt == ATTEMPTS:
                raise
        await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311
    raise AssertionError("the last attempt returns or raises")


async def expired(connection: AsyncConnection, before: datetime) -> list[Partition]:
    """The months that ended before that moment and still have a partition, oldest first."""
    names = await existing_partitions(connection)
    months = [(int(name[7:11]), int(name[12:14])) for name in names if name != DEFAULT_PARTITION]
    return [Partition(*month) for month in sorted(months) if month_bounds(*month)[1] <= id_at(before)]


async def stray_months(connection: AsyncConnection, before: datetime) -> list[tuple[int, int]]:
    """The months before that of `before`, as (year, month), with events in the default partition.

    Each needs its own partition.
    """
    this_month = month_bounds(before.astimezone(UTC).year, before.astimezone(UTC).month)[0]
    months: list[tuple[int, int]] = []
    start = UUID(int=0)
    while True:
        oldest = await connection.scalar(
            text(f"SELECT id FROM {DEFAULT_PARTITION} WHERE id >= :start AND id < :end ORDER BY id LIMIT 1"),  # noqa: S608
            {"start": start, "end": this_month},
        )
        if oldest is None:
            return months
        months.append(month_of(oldest))
        start = month_bounds(*months[-1])[1]


async def needed(connection: AsyncConnection, partition: Partition) -> Needed:
    """What still needs the partition. Raises `RebaseNeeded` if the database came from another cluster."""
    await origin.check(connection)
    start, end = month_bounds(partition.year, partition.month)
    found = await connection.execute(
        text(_NEEDED.format(partition=partition.name)),
        {"start": start, "end": end},
    )
    waiting, dead, consumers = found.one()
    return Needed(waiting, dead, tuple(consumers))


async def drop(connection: AsyncConnection, partition: Partition, exported: int | None) -> Needed:
    """Drop the partition unless something still needs it; return what does. The caller must commit immediately.

    `exported` is the number of events in its export; raises `Changed` if the partition holds a different number. Raises
    `DBAPIError` with SQLSTATE 55P03 if a lock is not granted in time (try again), and with 42P01 if the partition is
    already gone.
    """
    await connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    # From here on, no event can be written to this month, and no writer is running: the next statement sees all events.
    # The lock excludes itself, so that two runs do not both hold it and deadlock at the drop.
    await connection.execute(text("SELECT lock_event_month(:name)"), {"name": partition.name})
    await connection.execute(text(_LOCK_SINKS))
    reasons = await needed(connection, partition)
    if reasons:
        return reasons
    await connection.execute(text(_NOTE_DROPPED.format(partition=partition.name)))
    if exported is not None:
        held = await connection.scalar(text(f"SELECT count(*) FROM {partition.name}"))  # noqa: S608
        if held != exported:
            raise Changed(f"{partition.name} holds {held} events, but {exported} were exported")
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    # By a function of the log's owner. Not DETACH ... CONCURRENTLY: PostgreSQL does not allow it if there is a default
    # partition.
    await connection.execute(text("SELECT drop_event_month(:name)"), {"name": partition.name})
    return reasons
