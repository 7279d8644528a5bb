"""All SQL about events that wait or are dead: park, wake, put off, bury."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.outbox.generations import BY_POSITION, LAST_TAKEN, generations, ready_of
from services.outbox.models import Waits
from services.sql import SqlAccess, Statement

# What a row waits for is the aggregate's first row that waits, or a dead letter. Its lock, shared with others that wait
# for it, keeps it from being processed or replayed before this commit: whoever does that wakes all who wait. Where it
# is locked, it is being processed, and nobody needs to wait for long.
_PARK = Statement("""
    UPDATE outbox SET waits = 'behind', available_at = 'infinity'
    WHERE position = ANY(CAST(:positions AS bigint[])) AND CASE WHEN EXISTS (
        SELECT FROM dead_letters
        WHERE dead_letters.aggregate = outbox.aggregate AND dead_letters.position < outbox.position AND blocks
    ) THEN (
        SELECT position FROM dead_letters
        WHERE dead_letters.aggregate = outbox.aggregate AND dead_letters.position < outbox.position AND blocks
        LIMIT 1 FOR SHARE SKIP LOCKED
    ) ELSE (
        SELECT root.position FROM outbox AS root WHERE root.available_at < 'infinity' AND root.position = (
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = outbox.aggregate AND earlier.position < outbox.position
            AND earlier.available_at IS NOT NULL AND earlier.waits <> 'asked'
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ) FOR SHARE SKIP LOCKED
    ) END IS NOT NULL
    RETURNING position, aggregate
""")

_PUT_OFF = Statement("""
    UPDATE outbox SET waits = failed.waits, attempts = attempts + failed.counts, last_error = failed.error,
        available_at = clock_timestamp() + make_interval(secs => failed.delay),
        failures = CASE WHEN failed.failure IS NULL THEN failures
            ELSE coalesce(failures, '[]') || CAST(failed.failure AS jsonb) END
    FROM unnest(
        CAST(:positions AS bigint[]), CAST(:waits AS text[]), CAST(:counts AS smallint[]),
        CAST(:delays AS double precision[]), CAST(:errors AS text[]), CAST(:failures AS text[])
    ) AS failed(position, waits, counts, delay, error, failure)
    WHERE outbox.position = failed.position
""")

# Rows that another worker holds are left to it: it finds out for itself, and nobody waits for anybody here. What is
# beyond the limit is parked by the claims that meet it. An array, so that each row is updated by its key, however many
# the planner takes them for.
_HOLD_BACK = Statement(f"""
    UPDATE outbox SET waits = 'behind', available_at = 'infinity' WHERE position = ANY(ARRAY(
        SELECT held.position
        FROM unnest(CAST(:aggregates AS text[]), CAST(:positions AS bigint[])) AS failed(aggregate, position)
        CROSS JOIN LATERAL (
            SELECT ready.position FROM {generations("failed.position", LAST_TAKEN)} CROSS JOIN LATERAL (
                SELECT position FROM outbox
                WHERE {ready_of("failed.aggregate")} AND position > failed.position
                ORDER BY {BY_POSITION} LIMIT 10000 FOR UPDATE SKIP LOCKED
            ) AS ready
            UNION ALL
            SELECT due.position FROM (
                SELECT position FROM outbox
                WHERE aggregate = failed.aggregate AND position > failed.position
                AND available_at IS NOT NULL AND available_at < 'infinity' AND waits = 'behind'
                ORDER BY aggregate, position LIMIT 10000 FOR UPDATE SKIP LOCKED
            ) AS due
        ) AS held
    ))
""")  # noqa: S608

_BURY = Statement("""
    WITH failed AS (
        SELECT * FROM unnest(
            CAST(:positions AS bigint[]), CAST(:errors AS text[]), CAST(:fingerprints AS text[]),
            CAST(:failures AS text[]), CAST(:blocks AS boolean[])
        ) AS failed(position, error, fingerprint, failure, blocks)
    ), removed AS (
        DELETE FROM outbox USING failed WHERE outbox.position = failed.position
        RETURNING outbox.position, outbox.event_id, outbox.aggregate, outbox.type, outbox.attempts, outbox.failures,
            failed.error, failed.fingerprint, failed.failure, failed.blocks
    )
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures, blocks)
    SELECT position, event_id, aggregate, type, attempts + 1, error, fingerprint,
        coalesce(failures, '[]') || CAST(failure AS jsonb), blocks
    FROM removed
""")

_WAKE = Statement("""
    UPDATE outbox SET available_at = statement_timestamp() WHERE position IN (
        SELECT sleeping.position FROM unnest(CAST(:aggregates AS text[])) AS here(aggregate) CROSS JOIN LATERAL (
            SELECT position FROM outbox AS later WHERE later.aggregate = here.aggregate AND later.waits = 'behind'
            AND later.available_at = 'infinity' ORDER BY later.aggregate, later.position
        ) AS sleeping
    ) AND waits = 'behind' AND available_at = 'infinity'
""")

# A slice from the first ready row on: what is at the head of the queue and nobody takes.
_PARK_UNKNOWN = Statement("""
    UPDATE outbox SET waits = 'unknown', available_at = statement_timestamp(),
        last_error = format('no worker that looked at it has a handler for events of type ''%s''', type)
    WHERE position IN (
        SELECT position FROM outbox AS unknown WHERE type <> ALL(CAST(:known AS text[])) AND position IN (
            SELECT position FROM outbox WHERE available_at IS NULL AND position >= :floor ORDER BY position LIMIT :slice
        ) FOR UPDATE SKIP LOCKED
    )
""")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be processed, and when to try again (`delay` in seconds).

    `error` is the whole traceback, `entry` a JSON object for the event's history, if it is to be kept there.
    """

    position: int
    aggregate: str
    error: str
    fingerprint: str
    entry: str | None
    delay: float = 0.0
    waits: Waits = Waits.retry
    counts: bool = True
    blocks: bool = True


_CROWD = 20
"""Rows of an aggregate in one claim that tell of more behind them."""


class WaitingRepository(SqlAccess):
    """What waits in the outbox, and the dead letters."""

    async def park(self, positions: Sequence[int]) -> int:
        """Take rows out of the scan that wait behind one that waits itself, until that one wakes them; their number.

        Where an aggregate has many of them, those that no claim has met yet are taken out with them.
        """
        parked = await self.sql.fetch(_PARK, positions=list(positions))
        first: dict[str, int] = {}
        for row in parked:
            first[row["aggregate"]] = min(row["position"], first.get(row["aggregate"], row["position"]))
        if len(parked) >= _CROWD * len(first) > 0:
            await self.sql.run(_HOLD_BACK, aggregates=list(first), positions=list(first.values()))
        return len(parked)

    async def wake(self, aggregates: Sequence[str]) -> int:
        """Make due what waits behind something of these aggregates that is now out of the way; the number of rows."""
        return await self.sql.run(_WAKE, aggregates=list(aggregates))

    async def put_off(self, failures: Sequence[Failure]) -> None:
        """Let events wait, with an attempt counted where it `counts`; later ones of the aggregate wait behind."""
        await self.sql.run(
            _PUT_OFF,
            positions=[failure.position for failure in failures],
            waits=[failure.waits.value for failure in failures],
            counts=[int(failure.counts) for failure in failures],
            delays=[failure.delay for failure in failures],
            errors=[failure.error for failure in failures],
            failures=[failure.entry for failure in failures],
        )
        await self._hold_back(failures)

    async def bury(self, failures: Sequence[Failure]) -> None:
        """Make dead letters of events; later ones of the aggregate wait behind those that block."""
        await self.sql.run(
            _BURY,
            positions=[failure.position for failure in failures],
            errors=[failure.error for failure in failures],
            fingerprints=[failure.fingerprint for failure in failures],
            failures=[failure.entry for failure in failures],
            blocks=[failure.blocks for failure in failures],
        )
        await self._hold_back([failure for failure in failures if failure.blocks])
        passed = [failure.aggregate for failure in failures if not failure.blocks]
        if passed:
            await self.wake(passed)

    async def park_unknown(self, known: Sequence[str], floor: int, batch: int) -> int:
        """Let events at the head of the queue wait whose types are not among `known`; the number of rows.

        They are due for whoever knows them.
        """
        return await self.sql.run(_PARK_UNKNOWN, known=list(known), floor=floor, slice=batch)

    async def _hold_back(self, failures: Sequence[Failure]) -> None:
        if failures:
            await self.sql.run(
                _HOLD_BACK,
                aggregates=[failure.aggregate for failure in failures],
                positions=[failure.position for failure in failures],
            )
