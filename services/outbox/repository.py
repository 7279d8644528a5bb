"""All SQL of the engine: append, claim, complete, put off, bury, replay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.fields import new_id
from services.outbox.events import Event, Trace
from services.sql import SqlAccess, Statement

# One statement for all events of a unit of work, whatever their number.
_APPEND = Statement("""
    WITH new AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:versions AS smallint[]), CAST(:aggregates AS text[]),
            CAST(:payloads AS text[]), CAST(:request_ids AS text[]), CAST(:traceparents AS text[]),
            CAST(:queued AS boolean[])
        ) WITH ORDINALITY
        AS new(id, type, version, aggregate, payload, request_id, traceparent, queued, ordinal)
    ), logged AS (
        INSERT INTO events (id, type, version, aggregate, payload, request_id, traceparent)
        SELECT id, type, version, aggregate, CAST(payload AS jsonb), request_id, traceparent FROM new
    )
    INSERT INTO outbox (event_id, aggregate, type)
    SELECT id, aggregate, type FROM new WHERE queued ORDER BY ordinal
""")

# Locks the first due rows, then tells which of them may run: those whose earlier rows of the same aggregate are all
# among them, and whose aggregate has no dead letter. Everything reads one snapshot, so a row that another worker is
# about to delete still blocks here.
_CLAIM = Statement("""
    WITH locked AS MATERIALIZED (
        SELECT position, event_id, aggregate, type, attempts FROM outbox
        WHERE available_at <= statement_timestamp()
        ORDER BY position LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    SELECT locked.position, locked.event_id, locked.aggregate, locked.type, locked.attempts,
        events.version, events.payload, events.request_id, events.traceparent,
        (
            -- Not EXISTS: the ORDER BY keeps the planner on the index, however many rows an aggregate has.
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = locked.aggregate AND earlier.position < locked.position
            AND earlier.position NOT IN (SELECT position FROM locked)
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ) IS NOT NULL OR EXISTS (
            SELECT FROM dead_letters
            WHERE dead_letters.aggregate = locked.aggregate AND dead_letters.position < locked.position
        ) AS blocked
    FROM locked LEFT JOIN events ON events.id = locked.event_id
    ORDER BY locked.position
""")

_COMPLETE = Statement("DELETE FROM outbox WHERE position = ANY(CAST(:positions AS bigint[]))")

# Rows that arrived behind one that waits leave the scan until it is due again; a blocker that another worker holds is
# due, and changes nothing here. What waits is the aggregate's first row: one look at the index, however many follow.
_POSTPONE_BLOCKED = Statement("""
    UPDATE outbox SET available_at = blocker.until
    FROM (
        SELECT waiting.position, coalesce(
            -- Shared with others who wait behind it, but not with its replay: that one wakes all who wait.
            (SELECT CAST('infinity' AS timestamptz) FROM dead_letters
             WHERE dead_letters.aggregate = waiting.aggregate AND dead_letters.position < waiting.position LIMIT 1
             FOR SHARE),
            (SELECT earlier.available_at FROM outbox AS earlier
             WHERE earlier.aggregate = waiting.aggregate AND earlier.position < waiting.position
             ORDER BY earlier.aggregate, earlier.position LIMIT 1)
        ) AS until
        FROM outbox AS waiting WHERE waiting.position = ANY(CAST(:positions AS bigint[]))
    ) AS blocker
    WHERE outbox.position = blocker.position AND blocker.until > statement_timestamp()
""")

_PUT_OFF = Statement("""
    WITH failed AS (
        SELECT * FROM unnest(
            CAST(:positions AS bigint[]), CAST(:aggregates AS text[]), CAST(:delays AS double precision[]),
            CAST(:errors AS text[])
        ) AS failed(position, aggregate, delay, error)
    )
    UPDATE outbox SET
        attempts = attempts + CASE WHEN outbox.position = failed.position THEN 1 ELSE 0 END,
        last_error = CASE WHEN outbox.position = failed.position THEN failed.error ELSE last_error END,
        available_at = greatest(available_at, clock_timestamp() + make_interval(secs => failed.delay))
    FROM failed
    WHERE outbox.aggregate = failed.aggregate AND outbox.position >= failed.position
""")

_BURY = Statement("""
    WITH failed AS (
        SELECT * FROM unnest(CAST(:positions AS bigint[]), CAST(:errors AS text[])) AS failed(position, error)
    ), removed AS (
        DELETE FROM outbox USING failed WHERE outbox.position = failed.position
        RETURNING outbox.position, outbox.event_id, outbox.aggregate, outbox.type, outbox.attempts, failed.error
    ), waiting AS (
        UPDATE outbox SET available_at = 'infinity' FROM removed
        WHERE outbox.aggregate = removed.aggregate AND outbox.position > removed.position
    )
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)
    SELECT position, event_id, aggregate, type, attempts + 1, error FROM removed
""")

_LOCK_DEAD_LETTER = Statement("SELECT position FROM dead_letters WHERE position = :position FOR UPDATE")

_REPLAY = Statement("""
    WITH risen AS (
        DELETE FROM dead_letters WHERE position = :position RETURNING position, event_id, aggregate, type
    ), waiting AS (
        UPDATE outbox SET available_at = statement_timestamp() FROM risen
        WHERE outbox.aggregate = risen.aggregate AND outbox.position > risen.position
    )
    INSERT INTO outbox (position, event_id, aggregate, type)
    SELECT position, event_id, aggregate, type FROM risen
""")


@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """An outbox row locked by this transaction, with its event from the log (None where the log has lost it)."""

    position: int
    event_id: UUID
    aggregate: str
    type: str
    attempts: int
    version: int | None
    payload: dict[str, Any] | None
    request_id: str | None
    traceparent: str | None
    blocked: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be processed, and when to try again (`delay` in seconds)."""

    position: int
    aggregate: str
    error: str
    delay: float


class OutboxRepository(SqlAccess):
    """The event log, the outbox and the dead letters."""

    async def append(self, recorded: Sequence[tuple[Event, Trace]]) -> None:
        """Write events to the log, each with where it came from, and an outbox row for each that is queued."""
        events = [event for event, _ in recorded]
        await self.sql.run(
            _APPEND,
            ids=[new_id() for _ in events],
            types=[event.type for event in events],
            versions=[event.version for event in events],
            aggregates=[event.aggregate for event in events],
            payloads=[event.model_dump_json() for event in events],
            request_ids=[trace.request_id for _, trace in recorded],
            traceparents=[trace.traceparent for _, trace in recorded],
            queued=[event.queued for event in events],
        )

    async def claim(self, limit: int) -> list[ClaimedRow]:
        """Lock up to `limit` due rows until the transaction ends. `blocked` ones must not run now."""
        return [ClaimedRow(**row) for row in await self.sql.fetch(_CLAIM, limit=limit)]

    async def complete(self, positions: Sequence[int]) -> None:
        """Delete the rows of processed events."""
        await self.sql.run(_COMPLETE, positions=list(positions))

    async def postpone_blocked(self, positions: Sequence[int]) -> int:
        """Take rows that wait behind a deferred or dead one out of the claim until that one moves; their number."""
        return await self.sql.run(_POSTPONE_BLOCKED, positions=list(positions))

    async def put_off(self, failures: Sequence[Failure]) -> None:
        """Count an attempt and wait; later events of the same aggregate wait as long."""
        await self.sql.run(
            _PUT_OFF,
            positions=[failure.position for failure in failures],
            aggregates=[failure.aggregate for failure in failures],
            delays=[failure.delay for failure in failures],
            errors=[failure.error for failure in failures],
        )

    async def bury(self, failures: Sequence[Failure]) -> None:
        """Make dead letters of events whose attempts are used up; later ones of the aggregate wait behind."""
        await self.sql.run(
            _BURY,
            positions=[failure.position for failure in failures],
            errors=[failure.error for failure in failures],
        )

    async def replay(self, position: int) -> bool:
        """Put a dead letter back at its old place with its attempts at zero; False if there is none."""
        # Two statements: the second sees every row that was sent to wait before the lock was granted.
        if not await self.sql.fetch(_LOCK_DEAD_LETTER, position=position):
            return False
        return await self.sql.run(_REPLAY, position=position) == 1
