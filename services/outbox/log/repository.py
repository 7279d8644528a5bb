"""All SQL of the log's readers: consumers, what is new to one of them, how far behind they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from services.sql import SqlAccess, Statement

NOTHING_SEEN = "1:1:"
"""A snapshot in which no transaction has ended."""

_CREATE = Statement("""
    INSERT INTO log_consumers (name, seen) VALUES (:name, CAST(CAST(:seen AS text) AS pg_snapshot))
    ON CONFLICT DO NOTHING
""")

_RESET = Statement("""
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot), reading = NULL, position = 0,
        until = NULL, updated_at = clock_timestamp()
    WHERE name = :name
""")

_DELETE = Statement("DELETE FROM log_consumers WHERE name = :name")

_EXISTS = Statement("SELECT FROM log_consumers WHERE name = :name")

# A consumer for whom nothing is new is not locked: an idle look writes nothing. The ORDER BYs keep the planner on the
# index. What is new to a snapshot are the transactions that were running then and those that began later.
_LOCK = Statement("""
    SELECT CAST(seen AS text) AS seen, CAST(reading AS text) AS reading, position, until FROM log_consumers
    WHERE name = :name AND (
        reading IS NOT NULL
        OR (
            SELECT transaction_id FROM events WHERE transaction_id >= pg_snapshot_xmax(seen)
            ORDER BY transaction_id DESC LIMIT 1
        ) IS NOT NULL
        OR EXISTS (SELECT FROM events WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip(seen))))
    )
    FOR NO KEY UPDATE SKIP LOCKED
""")

# `first` is where to begin: at the log's beginning for who has seen nothing, else at the lowest new position. A few new
# events are found by the index whatever the planner knows of the log; for many it may choose. The sum keeps it from
# looking for the lowest along the index of positions, past all that was seen.
_OPEN = Statement("""
    WITH place AS MATERIALIZED (
        SELECT pg_snapshot_xmax(CAST(CAST(:seen AS text) AS pg_snapshot)) AS following,
            ARRAY(SELECT pg_snapshot_xip(CAST(CAST(:seen AS text) AS pg_snapshot))) AS running
    ), fresh AS MATERIALIZED (
        SELECT position FROM events WHERE transaction_id >= (SELECT following FROM place)
        ORDER BY transaction_id LIMIT 100
    )
    SELECT CAST(pg_current_snapshot() AS text) AS snapshot, CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own,
        CASE
            WHEN CAST(:seen AS text) = :nothing THEN (SELECT min(position) FROM events)
            ELSE least(
                (
                    SELECT min(position + 0) FROM events
                    WHERE transaction_id = ANY(CAST((SELECT running FROM place) AS xid8[]))
                ),
                CASE
                    WHEN (SELECT count(*) FROM fresh) < 100 THEN (SELECT min(position) FROM fresh)
                    ELSE (
                        SELECT min(position + 0) FROM events WHERE transaction_id >= (SELECT following FROM place)
                    )
                END
            )
        END AS first,
        (SELECT max(position) FROM events) AS last
""")

_PAGE = Statement("""
    SELECT position, id, type, version, aggregate, payload, occurred_at, request_id, traceparent FROM events
    WHERE position > :after AND position <= :until
    AND NOT pg_visible_in_snapshot(transaction_id, CAST(CAST(:seen AS text) AS pg_snapshot))
    AND pg_visible_in_snapshot(transaction_id, CAST(CAST(:reading AS text) AS pg_snapshot))
    AND (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
    ORDER BY position LIMIT :limit
""")

_ADVANCE = Statement("""
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot),
        reading = CAST(CAST(:reading AS text) AS pg_snapshot), position = :position, until = :until,
        updated_at = clock_timestamp()
    WHERE name = :name
""")

_LIST = Statement("""
    SELECT name, updated_at, least(unread.events, :most) AS events,
        coalesce(extract(epoch FROM clock_timestamp() - unread.oldest), 0)::float AS seconds
    FROM log_consumers CROSS JOIN LATERAL (
        SELECT count(*) AS events, min(occurred_at) AS oldest FROM (
            (
                SELECT occurred_at FROM events
                WHERE transaction_id >= pg_snapshot_xmax(seen) AND (
                    reading IS NULL OR events.position > log_consumers.position
                    OR NOT pg_visible_in_snapshot(transaction_id, reading)
                )
                ORDER BY transaction_id LIMIT :most
            )
            UNION ALL
            SELECT occurred_at FROM events
            WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip(seen))) AND (
                reading IS NULL OR events.position > log_consumers.position
                OR NOT pg_visible_in_snapshot(transaction_id, reading)
            )
        ) AS unread
    ) AS unread
    ORDER BY name
""")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a consumer has come; the fields are those of the table."""

    seen: str
    reading: str | None
    position: int
    until: int | None


@dataclass(frozen=True, slots=True)
class Opened:
    """What the log holds that is new: from `first` to at most `last`, as `snapshot` shows it (`own`: who looks)."""

    snapshot: str
    own: int
    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as the log holds it."""

    position: int
    id: UUID
    type: str
    version: int
    aggregate: str
    payload: dict[str, Any]
    occurred_at: datetime
    request_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a consumer is: unread events, whatever their type, and the seconds since the oldest of them."""

    name: str
    updated_at: datetime
    events: int
    seconds: float


class LogRepository(SqlAccess):
    """The log and its consumers."""

    async def create(self, name: str, seen: str) -> bool:
        """False if there is one of that name."""
        return await self.sql.run(_CREATE, name=name, seen=seen) == 1

    async def reset(self, name: str, seen: str) -> bool:
        """Waits for whoever is reading; False if there is no consumer of that name."""
        return await self.sql.run(_RESET, name=name, seen=seen) == 1

    async def delete(self, name: str) -> bool:
        """Waits for whoever is reading; False if there is no consumer of that name."""
        return await self.sql.run(_DELETE, name=name) == 1

    async def exists(self, name: str) -> bool:
        return len(await self.sql.fetch(_EXISTS, name=name)) == 1

    async def lock(self, name: str) -> Cursor | None:
        """Take the consumer until the transaction ends; None if another has it or nothing is new to it."""
        rows = await self.sql.fetch(_LOCK, name=name)
        return Cursor(**rows[0]) if rows else None

    async def open(self, seen: str) -> Opened:
        """What is new to who has seen `seen`."""
        return Opened(**(await self.sql.fetch(_OPEN, seen=seen, nothing=NOTHING_SEEN))[0])

    async def page(self, cursor: Cursor, until: int, types: Sequence[str] | None, limit: int) -> list[LoggedEvent]:
        """The next events that `reading` shows and `seen` does not, by position."""
        rows = await self.sql.fetch(
            _PAGE,
            after=cursor.position,
            until=until,
            seen=cursor.seen,
            reading=cursor.reading,
            types=None if types is None else list(types),
            limit=limit,
        )
        return [LoggedEvent(**row) for row in rows]

    async def advance(self, name: str, cursor: Cursor) -> None:
        moved = await self.sql.run(
            _ADVANCE,
            name=name,
            seen=cursor.seen,
            reading=cursor.reading,
            position=cursor.position,
            until=cursor.until,
        )
        assert moved == 1, "a consumer's row went away under its lock"

    async def lags(self, most: int) -> list[Lag]:
        """Every consumer by name; at most `most` events are counted for each."""
        return [Lag(**row) for row in await self.sql.fetch(_LIST, most=most)]
