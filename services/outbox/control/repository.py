"""All SQL of an operator: dead letters, deferred events, event types, why something waits, workers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlmodel import col, select

from services.fields import Id, Instant, Text
from services.outbox.control.schemas import Selection
from services.outbox.generations import BY_POSITION, LAST_TAKEN, generations, ready_of
from services.outbox.models import DeadLetter, EventRow, OutboxRow, Waits
from services.query import EXACT, ORDERED, Filterable, Listing, PageQuery, Rows, Sortable
from services.sql import Row, SqlAccess, Statement

COUNTED = 10_000
"""Rows that a count reads at most: it says "at least so many" beyond, and costs no more with ten million."""

_SELECTED = """
    (CAST(:position AS bigint) IS NULL OR position = :position)
    AND (CAST(:event_id AS uuid) IS NULL OR event_id = :event_id)
    AND (CAST(:type AS text) IS NULL OR type = :type)
    AND (CAST(:aggregate AS text) IS NULL OR aggregate = :aggregate)
    AND (CAST(:fingerprint AS text) IS NULL OR fingerprint = :fingerprint)
    AND (CAST(:died_from AS timestamptz) IS NULL OR died_at >= :died_from)
    AND (CAST(:died_before AS timestamptz) IS NULL OR died_at < :died_before)
"""

_COUNT = Statement(f"SELECT count(*) AS number FROM dead_letters WHERE {_SELECTED}")  # noqa: S608

_HEADS = Statement(f"""
    SELECT position, event_id, aggregate, type, fingerprint, died_at FROM dead_letters
    WHERE {_SELECTED} AND position > :after ORDER BY position LIMIT :slice
""")  # noqa: S608

# By itself, before what is done with them: it waits for those that are about to wait behind one of them, and the next
# statement sees what those have done.
_LOCK = Statement(f"""
    SELECT position, event_id, aggregate, type, fingerprint, died_at FROM dead_letters
    WHERE {_SELECTED} AND position > :after ORDER BY position LIMIT :slice FOR UPDATE
""")  # noqa: S608

_AUDIT_LETTERS = """
    INSERT INTO outbox_actions (actor, action, type, event_id, aggregate, reason, detail)
    SELECT :actor, '{action}', type, event_id, aggregate, :reason, jsonb_build_object(
        'position', position, 'attempts', attempts, 'fingerprint', fingerprint, 'died_at', died_at, 'error', error,
        'failures', failures
    ) FROM taken
"""

_REPLAY = Statement(f"""
    WITH taken AS (
        DELETE FROM dead_letters WHERE position = ANY(CAST(:positions AS bigint[])) RETURNING *
    ), audited AS ({_AUDIT_LETTERS.format(action="replay")})
    INSERT INTO outbox (position, event_id, aggregate, type, available_at, waits, failures)
    SELECT position, event_id, aggregate, type, statement_timestamp(), 'retry', failures FROM taken
""")  # noqa: S608

_DISCARD = Statement(f"""
    WITH taken AS (
        DELETE FROM dead_letters WHERE position = ANY(CAST(:positions AS bigint[])) RETURNING *
    ) {_AUDIT_LETTERS.format(action="discard")}
""")  # noqa: S608

_GROUPS = Statement("""
    SELECT groups.*, latest.type, latest.error FROM (
        SELECT fingerprint, count(*) AS letters, count(DISTINCT aggregate) AS aggregates, min(died_at) AS first_at,
            max(died_at) AS last_at, max(position) AS last_position
        FROM dead_letters WHERE CAST(:type AS text) IS NULL OR type = :type GROUP BY fingerprint
    ) AS groups JOIN dead_letters AS latest ON latest.position = groups.last_position
    ORDER BY letters DESC, groups.fingerprint LIMIT :slice
""")

# Found by the log's key and the index of what waits by aggregate: the outbox has no index on the event.
_LOCK_DEFERRED = Statement("""
    SELECT position FROM outbox
    WHERE aggregate = (SELECT aggregate FROM events WHERE id = :event_id) AND event_id = :event_id
    AND available_at IS NOT NULL AND waits = 'asked'
    FOR UPDATE SKIP LOCKED
""")

_CANCEL = Statement("""
    WITH taken AS (DELETE FROM outbox WHERE position = :position RETURNING *)
    INSERT INTO outbox_actions (actor, action, type, event_id, aggregate, reason, detail)
    SELECT :actor, 'cancel', type, event_id, aggregate, :reason,
        jsonb_build_object('position', position, 'available_at', available_at)
    FROM taken
""")

_AUDIT_TYPE = """
    INSERT INTO outbox_actions (actor, action, type, reason, detail)
    SELECT changed_by, :action, type, :reason, jsonb_build_object('paused', paused, 'max_batches', max_batches)
    FROM changed
"""

_PAUSE = Statement(f"""
    WITH changed AS (
        INSERT INTO outbox_types AS control (type, paused, changed_by) VALUES (:type, :paused, :actor)
        ON CONFLICT (type) DO UPDATE
        SET paused = excluded.paused, changed_at = excluded.changed_at, changed_by = excluded.changed_by
        RETURNING *
    ) {_AUDIT_TYPE}
""")  # noqa: S608

_LIMIT = Statement(f"""
    WITH changed AS (
        INSERT INTO outbox_types AS control (type, max_batches, changed_by) VALUES (:type, :max_batches, :actor)
        ON CONFLICT (type) DO UPDATE
        SET max_batches = excluded.max_batches, changed_at = excluded.changed_at, changed_by = excluded.changed_by
        RETURNING *
    ) {_AUDIT_TYPE}
""")  # noqa: S608

_SLOTS = """
    SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid = CAST(hashtext(current_schema() || ' outbox ' || {type}) AS oid)
"""

_LIVE = "beat_at > statement_timestamp() - make_interval(secs => 20)"

# The types that stand in the outbox are found by leaps over its indexes, not by reading it.
_TYPES = Statement(f"""
    WITH RECURSIVE ready(type) AS (
        (SELECT type FROM outbox WHERE available_at IS NULL ORDER BY type LIMIT 1)
        UNION ALL
        SELECT (
            SELECT outbox.type FROM outbox WHERE available_at IS NULL AND outbox.type > ready.type
            ORDER BY outbox.type LIMIT 1
        ) FROM ready WHERE ready.type IS NOT NULL
    ), waiting(type) AS (
        (SELECT type FROM outbox WHERE available_at IS NOT NULL ORDER BY type LIMIT 1)
        UNION ALL
        SELECT (
            SELECT outbox.type FROM outbox WHERE available_at IS NOT NULL AND outbox.type > waiting.type
            ORDER BY outbox.type LIMIT 1
        ) FROM waiting WHERE waiting.type IS NOT NULL
    ), handled AS (
        SELECT handled.type, count(*) AS workers FROM workers
        CROSS JOIN LATERAL jsonb_array_elements_text(report -> 'types') AS handled(type) WHERE {_LIVE} GROUP BY 1
    ), dead AS (
        SELECT type, count(*) AS letters FROM dead_letters GROUP BY type
    ), known AS (
        SELECT type FROM ready UNION SELECT type FROM waiting UNION SELECT type FROM handled UNION SELECT type FROM dead
        UNION SELECT type FROM outbox_types
    )
    SELECT known.type,
        (SELECT count(*) FROM (
            SELECT FROM outbox WHERE outbox.type = known.type AND available_at IS NULL LIMIT :counted + 1
        ) AS bounded) AS ready,
        (SELECT count(*) FROM (
            SELECT FROM outbox WHERE outbox.type = known.type AND available_at IS NOT NULL LIMIT :counted + 1
        ) AS bounded) AS waiting,
        CAST(extract(epoch FROM statement_timestamp() - (
            SELECT occurred_at FROM events WHERE id = (
                SELECT event_id FROM outbox WHERE outbox.type = known.type AND available_at IS NULL
                ORDER BY position LIMIT 1
            )
        )) AS double precision) AS oldest_ready_seconds,
        coalesce(control.paused, false) AS paused, control.max_batches, control.changed_at, control.changed_by,
        coalesce(dead.letters, 0) AS dead_letters, coalesce(handled.workers, 0) AS workers
    FROM known LEFT JOIN outbox_types AS control ON control.type = known.type
    LEFT JOIN handled ON handled.type = known.type LEFT JOIN dead ON dead.type = known.type
    WHERE known.type IS NOT NULL ORDER BY known.type
""")  # noqa: S608

# `xmax` is the transaction that has locked the row, or is about to delete it, as long as it runs.
_FACTS = f"""
    SELECT outbox.position, outbox.event_id, outbox.aggregate, outbox.type, outbox.waits,
        nullif(outbox.available_at, 'infinity') AS until,
        coalesce(outbox.available_at <= statement_timestamp(), true) AS due,
        outbox.attempts, outbox.last_error AS error, outbox.failures -> -1 ->> 'at' AS failed_at,
        (SELECT occurred_at FROM events WHERE events.id = outbox.event_id) AS occurred_at,
        activity.pid, activity.application_name AS application, activity.xact_start AS locked_at,
        coalesce(control.paused, false) AS paused, control.max_batches, control.changed_at, control.changed_by,
        CASE WHEN control.max_batches IS NOT NULL THEN ({_SLOTS.format(type="outbox.type")}) ELSE 0 END AS batches,
        EXISTS (SELECT FROM workers WHERE {_LIVE} AND report -> 'types' ? outbox.type) AS handled,
        (
            SELECT min(dead_letters.position) FROM dead_letters
            WHERE dead_letters.aggregate = outbox.aggregate AND dead_letters.position < outbox.position AND blocks
        ) AS dead_before,
        (
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = outbox.aggregate AND earlier.position < outbox.position
            AND earlier.available_at IS NOT NULL AND earlier.waits IN ('retry', 'unknown')
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ) AS waiting_before,
        least((
            SELECT min(earlier.position) FROM {generations("0", "outbox.position")} CROSS JOIN LATERAL (
                SELECT position FROM outbox AS earlier
                WHERE {ready_of("outbox.aggregate")} AND position < outbox.position ORDER BY {BY_POSITION} LIMIT 1
            ) AS earlier
        ), (
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = outbox.aggregate AND earlier.position < outbox.position
            AND earlier.available_at IS NOT NULL AND earlier.waits = 'behind'
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        )) AS ready_before
    FROM outbox LEFT JOIN pg_stat_activity AS activity ON activity.backend_xid = outbox.xmax
    LEFT JOIN outbox_types AS control ON control.type = outbox.type
"""  # noqa: S608

_ROW = Statement(f"{_FACTS} WHERE outbox.position = :position")
_ROWS_OF_AGGREGATE = Statement(f"""
    {_FACTS} WHERE outbox.position IN (
        SELECT position FROM (
            SELECT position FROM outbox AS waiting WHERE available_at IS NOT NULL AND aggregate = :aggregate
            ORDER BY aggregate, position LIMIT :slice
        ) AS waiting
        UNION ALL
        SELECT ready.position FROM {generations("0", LAST_TAKEN)} CROSS JOIN LATERAL (
            SELECT position FROM outbox AS ready WHERE {ready_of(":aggregate")} ORDER BY {BY_POSITION} LIMIT :slice
        ) AS ready
    ) ORDER BY outbox.position LIMIT :slice
""")  # noqa: S608
_LETTERS_OF = Statement("SELECT position FROM dead_letters WHERE aggregate = :aggregate ORDER BY position LIMIT :slice")
_POSITION = Statement(f"""
    WITH wanted AS MATERIALIZED (SELECT aggregate FROM events WHERE id = :event_id)
    SELECT position FROM outbox
    WHERE available_at IS NOT NULL AND aggregate = (SELECT aggregate FROM wanted) AND event_id = :event_id
    UNION ALL
    SELECT position FROM {generations("0", LAST_TAKEN)} JOIN outbox
    ON {ready_of("(SELECT aggregate FROM wanted)")} AND event_id = :event_id
    UNION ALL
    SELECT position FROM dead_letters WHERE event_id = :event_id
""")  # noqa: S608

_BEAT = Statement("""
    INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)
    VALUES (
        :id, :host, :pid, statement_timestamp() - make_interval(secs => CAST(:age AS double precision)),
        statement_timestamp(),
        statement_timestamp() - make_interval(secs => CAST(:stuck AS double precision)), CAST(:report AS jsonb)
    )
    ON CONFLICT (id) DO UPDATE
    SET beat_at = excluded.beat_at, progress_at = excluded.progress_at, report = excluded.report
""")
_LEAVE = Statement("DELETE FROM workers WHERE id = :id")
_LOST = Statement("""
    SELECT id FROM workers WHERE beat_at < statement_timestamp() - interval '1 day' AND id > :after
    ORDER BY id LIMIT :limit
""")
_FORGET = Statement("""
    DELETE FROM workers WHERE id = ANY(ARRAY(
        SELECT id FROM workers WHERE id = ANY(CAST(:ids AS uuid[]))
        AND beat_at < statement_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
    )) RETURNING id
""")
_WORKERS = Statement("""
    SELECT id, host, pid, started_at, beat_at, progress_at, report::text AS report,
        CAST(extract(epoch FROM statement_timestamp() - beat_at) AS double precision) AS silent_seconds,
        CAST(extract(epoch FROM statement_timestamp() - progress_at) AS double precision) AS stuck_seconds
    FROM workers WHERE CAST(:host AS text) IS NULL OR host = :host ORDER BY host, pid, started_at
""")

_BACKLOG = Statement("""
    SELECT count(*) AS waiting,
        count(*) FILTER (WHERE attempts > 0) AS retrying,
        coalesce(extract(epoch FROM clock_timestamp() - least(min(available_at) FILTER (
            WHERE available_at <= clock_timestamp()
        ), (
            SELECT occurred_at FROM events WHERE id = (
                SELECT event_id FROM outbox WHERE available_at IS NULL ORDER BY position LIMIT 1
            )
        ))), 0)::float AS oldest_due_seconds,
        (SELECT count(*) FROM dead_letters) AS dead_letters
    FROM outbox
""")

_LETTER = Sortable(DeadLetter.position, Id)

DEAD_LETTERS = Listing[DeadLetter](
    filters={
        "aggregate": Filterable(DeadLetter.aggregate, Text, EXACT),
        "type": Filterable(DeadLetter.type, Text, EXACT),
        "fingerprint": Filterable(DeadLetter.fingerprint, Text, EXACT),
        "died_at": Filterable(DeadLetter.died_at, Instant, ORDERED),
    },
    sorts={"position": _LETTER},
    key=_LETTER,
    default="position",
)

_PLACE = Sortable(OutboxRow.position, Id)

DEFERRED = Listing[OutboxRow](
    filters={
        "aggregate": Filterable(OutboxRow.aggregate, Text, EXACT),
        "type": Filterable(OutboxRow.type, Text, EXACT),
        "available_at": Filterable(OutboxRow.available_at, Instant, ORDERED),
    },
    sorts={"position": _PLACE, "available_at": Sortable(OutboxRow.available_at, Instant)},
    key=_PLACE,
    default="position",
)


class ControlRepository(SqlAccess):
    """What operators read of the engine, and what they do to it, each with its entry in the audit."""

    async def dead_letter(self, position: int) -> tuple[DeadLetter, EventRow | None] | None:
        """A dead letter with its event from the log (None where the log has lost it)."""
        statement = (
            select(DeadLetter, EventRow)
            .outerjoin(EventRow, col(EventRow.id) == DeadLetter.event_id)
            .where(col(DeadLetter.position) == position)
        )
        found = (await self.session.exec(statement)).first()
        return None if found is None else (found[0], found[1])

    async def count(self, selection: Selection) -> int:
        (row,) = await self.sql.fetch(_COUNT, **asdict(selection))
        return int(row["number"])

    async def heads(self, selection: Selection, after: int, limit: int) -> Sequence[Row]:
        """Which dead letters these are, from the first position after `after` on."""
        return await self.sql.fetch(_HEADS, **asdict(selection), after=after, slice=limit)

    async def lock(self, selection: Selection, after: int, limit: int) -> Sequence[Row]:
        """As `heads`, and nobody else replays, discards or waits behind them until the transaction ends."""
        return await self.sql.fetch(_LOCK, **asdict(selection), after=after, slice=limit)

    async def replay(self, positions: Sequence[int], actor: str, reason: str) -> int:
        """Put locked dead letters back at their old places, due now, their attempts at zero; their number."""
        return await self.sql.run(_REPLAY, positions=list(positions), actor=actor, reason=reason)

    async def discard(self, positions: Sequence[int], actor: str, reason: str) -> int:
        """Delete locked dead letters; what waited behind them is still to be woken. Their number."""
        return await self.sql.run(_DISCARD, positions=list(positions), actor=actor, reason=reason)

    async def groups(self, event_type: str | None, limit: int) -> Sequence[Row]:
        """Dead letters by fingerprint, the largest group first, each with its latest error."""
        return await self.sql.fetch(_GROUPS, type=event_type, slice=limit)

    async def backlog(self) -> dict[str, Any]:
        """What waits, what is retried, what is dead, and for how long the oldest due event has waited."""
        return dict((await self.sql.fetch(_BACKLOG))[0])

    async def dead_letters(self, wanted: PageQuery) -> Rows[DeadLetter]:
        """Events whose attempts are used up."""
        return await DEAD_LETTERS.page(self.session, select(DeadLetter), wanted)

    async def deferred(self, wanted: PageQuery) -> Rows[OutboxRow]:
        """Events whose writers deferred them, and that nobody has tried yet."""
        return await DEFERRED.page(self.session, select(OutboxRow).where(col(OutboxRow.waits) == Waits.asked), wanted)

    async def cancel(self, event_id: UUID, actor: str, reason: str) -> bool:
        """Delete a deferred event's outbox row; False where there is none, or a worker is processing it."""
        for row in await self.sql.fetch(_LOCK_DEFERRED, event_id=event_id):
            return await self.sql.run(_CANCEL, position=row["position"], actor=actor, reason=reason) == 1
        return False

    async def pause(self, event_type: str, paused: bool, actor: str, reason: str) -> None:
        action = "pause" if paused else "resume"
        await self.sql.run(_PAUSE, type=event_type, paused=paused, actor=actor, action=action, reason=reason)

    async def limit(self, event_type: str, max_batches: int | None, actor: str, reason: str) -> None:
        """So many transactions at most at the same time; None: as many as there are."""
        await self.sql.run(_LIMIT, type=event_type, max_batches=max_batches, actor=actor, action="limit", reason=reason)

    async def types(self) -> Sequence[Row]:
        """Every event type that is in the outbox, handled, controlled or dead; counts end at `COUNTED` + 1."""
        return await self.sql.fetch(_TYPES, counted=COUNTED)

    async def row(self, position: int) -> Row | None:
        """What is known of one outbox row: what it waits for, who holds it, what is before it."""
        return next(iter(await self.sql.fetch(_ROW, position=position)), None)

    async def rows_of(self, aggregate: str, limit: int) -> Sequence[Row]:
        """As `row`, the aggregate's first ones."""
        return await self.sql.fetch(_ROWS_OF_AGGREGATE, aggregate=aggregate, slice=limit)

    async def dead_letters_of(self, aggregate: str, limit: int) -> list[int]:
        """The positions of an aggregate's first dead letters."""
        rows = await self.sql.fetch(_LETTERS_OF, aggregate=aggregate, slice=limit)
        return [row["position"] for row in rows]

    async def position_of(self, event_id: UUID) -> int | None:
        """Where an event stands in the outbox or among the dead letters."""
        return next((row["position"] for row in await self.sql.fetch(_POSITION, event_id=event_id)), None)

    async def beat(self, worker_id: UUID, host: str, pid: int, age: float, stuck: float, report: str) -> None:
        """Write a worker's row.

        `age` is the seconds since it started, `stuck` the seconds without progress, `report` JSON.
        """
        await self.sql.run(_BEAT, id=worker_id, host=host, pid=pid, age=age, stuck=stuck, report=report)

    async def leave(self, worker_id: UUID) -> None:
        """Delete a worker's row."""
        await self.sql.run(_LEAVE, id=worker_id)

    async def lost_workers(self, after: UUID | None, limit: int) -> list[UUID]:
        """Up to `limit` workers that have not been heard from for a day and come after `after`."""
        rows = await self.sql.fetch(_LOST, after=after or UUID(int=0), limit=limit)
        return [row["id"] for row in rows]

    async def forget_workers(self, ids: Sequence[UUID]) -> list[UUID]:
        """Delete the rows of those that are lost and not locked; returns the ids of the deleted ones."""
        return [row["id"] for row in await self.sql.fetch(_FORGET, ids=list(ids))]

    async def workers(self, host: str | None) -> Sequence[Row]:
        """The workers of one host, or all, with the seconds since their last beat and their last progress."""
        return await self.sql.fetch(_WORKERS, host=host)
