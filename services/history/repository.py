"""All SQL of the history."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from uuid import UUID

from services.history.models import SLOT
from services.history.schemas import Done
from services.sql import Row, SqlAccess, Statement

_KEPT = timedelta(hours=25)
_SLOT = timedelta(seconds=SLOT)


class HistoryRepository(SqlAccess):
    """What workers did and found, in slots of ten seconds. Rows are deleted after 25 hours."""

    async def write(self, worker_id: UUID, done: Done) -> bool:
        """Add what this worker did to its row of the present slot, and delete a few rows that are too old.

        Returns whether it is known what waits in this slot: someone has looked, or nothing waits and nothing is dead.
        """
        (row,) = await self.sql.fetch(_WRITE, worker_id=worker_id, slot=_SLOT, kept=_KEPT, **asdict(done))
        return bool(row["known"])

    async def note(self, worker_id: UUID, waiting: int, dead_letters: int, oldest_due_seconds: float) -> None:
        """Add what waits to the row that was written in this transaction."""
        await self.sql.run(
            _NOTE,
            worker_id=worker_id,
            slot=_SLOT,
            waiting=waiting,
            dead_letters=dead_letters,
            oldest_due_seconds=oldest_due_seconds,
        )

    async def wakeups(self, length: timedelta) -> tuple[int, int]:
        """How often, in this time, the doorbell and timed looks led workers to events."""
        (row,) = await self.sql.fetch(_WAKEUPS, length=length)
        return row["rung"], row["polled"]

    async def read(self, length: timedelta, step: timedelta) -> Sequence[Row]:
        """The steps of the last `length` in which a worker was running; the slot that is not over yet is left out.

        `number` counts the steps back from `until`, which is the end of step 0. `workers` is the average of its slots.
        """
        return await self.sql.fetch(_READ, length=length, step=step, slot=_SLOT)


_THIS_SLOT = "date_bin(CAST(:slot AS interval), now(), 'epoch')"

_POSITION = "pg_sequence_last_value(pg_get_serial_sequence('outbox', 'position'))"

# If nothing waits, that is written at once: a look would be three more statements.
_WRITE = Statement(f"""
    WITH gone AS (
        DELETE FROM history WHERE (at, worker_id) IN (
            SELECT at, worker_id FROM history WHERE at < now() - CAST(:kept AS interval)
            ORDER BY at, worker_id LIMIT 100 FOR UPDATE SKIP LOCKED
        )
    ), seen AS (
        SELECT EXISTS (SELECT FROM history WHERE at = {_THIS_SLOT} AND waiting IS NOT NULL) AS looked,
            CASE WHEN NOT EXISTS (SELECT FROM outbox) AND NOT EXISTS (SELECT FROM dead_letters) THEN 0 END AS nothing
    ), written AS (
        INSERT INTO history AS row (
            at, worker_id, processed, retried, buried, batches, rolled_back, rung, polled, queued, queue_seconds,
            waiting, dead_letters, oldest_due_seconds, position
        ) SELECT {_THIS_SLOT}, :worker_id, :processed, :retried, :buried, :batches, :rolled_back, :rung, :polled,
            :queued, :queue_seconds, found, found, found, CASE WHEN found IS NOT NULL THEN {_POSITION} END
        FROM (SELECT CASE WHEN NOT looked THEN nothing END AS found FROM seen) AS first
        ON CONFLICT (at, worker_id) DO UPDATE SET
            processed = row.processed + excluded.processed, retried = row.retried + excluded.retried,
            buried = row.buried + excluded.buried, batches = row.batches + excluded.batches,
            rolled_back = row.rolled_back + excluded.rolled_back, rung = row.rung + excluded.rung,
            polled = row.polled + excluded.polled, queued = row.queued + excluded.queued,
            queue_seconds = row.queue_seconds + excluded.queue_seconds,
            waiting = coalesce(row.waiting, excluded.waiting),
            dead_letters = coalesce(row.dead_letters, excluded.dead_letters),
            oldest_due_seconds = coalesce(row.oldest_due_seconds, excluded.oldest_due_seconds),
            position = coalesce(row.position, excluded.position)
    )
    SELECT looked OR nothing IS NOT NULL AS known FROM seen
""")  # noqa: S608

_NOTE = Statement(f"""
    UPDATE history SET waiting = :waiting, dead_letters = :dead_letters, oldest_due_seconds = :oldest_due_seconds,
        position = {_POSITION}
    WHERE at = {_THIS_SLOT} AND worker_id = :worker_id
""")  # noqa: S608

_WAKEUPS = Statement("""
    SELECT coalesce(sum(rung), 0)::bigint AS rung, coalesce(sum(polled), 0)::bigint AS polled
    FROM history WHERE at >= now() - CAST(:length AS interval)
""")

# Steps end where the present slot begins, so that each of them is complete. Each is a range of the key: to group all
# rows of a day by slot and then by step takes longer.
_READ = Statement(f"""
    WITH limits AS MATERIALIZED (SELECT {_THIS_SLOT} AS until)
    SELECT extract(epoch FROM until)::float8 AS until, number, step.*
    FROM limits CROSS JOIN generate_series(
        0, ceil(extract(epoch FROM CAST(:length AS interval)) / extract(epoch FROM CAST(:step AS interval)))::int - 1
    ) AS number CROSS JOIN LATERAL (
        SELECT sum(processed)::bigint AS processed, sum(retried + buried)::bigint AS failed,
            sum(batches)::bigint AS batches, sum(queued)::bigint AS queued, sum(queue_seconds)::float8 AS queue_seconds,
            max(waiting) AS waiting, max(dead_letters) AS dead_letters, max(oldest_due_seconds) AS oldest_due_seconds,
            ceil(count(*) / nullif(count(DISTINCT at), 0)::float8)::int AS workers,
            min(position) AS first_position, max(position) AS last_position,
            extract(epoch FROM min(at) FILTER (WHERE position IS NOT NULL))::float8 AS first_at,
            extract(epoch FROM max(at) FILTER (WHERE position IS NOT NULL))::float8 AS last_at
        FROM history
        WHERE at >= until - (number + 1) * CAST(:step AS interval) AND at < until - number * CAST(:step AS interval)
    ) AS step
    WHERE workers IS NOT NULL ORDER BY number DESC
""")  # noqa: S608
