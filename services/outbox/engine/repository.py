"""All SQL of what runs: append, claim, look, complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import TypeAdapter

from services.outbox.engine.waiting import WaitingRepository
from services.outbox.events import Recorded
from services.outbox.generations import BY_POSITION, LAST_TAKEN, MAX_POSITION, generations, ready_of
from services.sql import Statement, Write, Writing

# One statement for all events of a unit of work, whatever their number. The transaction has its id before it takes a
# position: claims tell by the ids of running transactions which positions may still come (`claim`).
_APPEND = Writing("""
    own AS MATERIALIZED (
        SELECT pg_current_xact_id() AS id
    ), new AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:versions AS smallint[]), CAST(:aggregates AS text[]),
            CAST(:payloads AS text[]), CAST(:request_ids AS text[]), CAST(:traceparents AS text[]),
            CAST(:queued AS boolean[]), CAST(:available_ats AS timestamptz[])
        ) WITH ORDINALITY
        AS new(id, type, version, aggregate, payload, request_id, traceparent, queued, available_at, ordinal)
    ), logged AS (
        INSERT INTO events (id, type, version, aggregate, payload, request_id, traceparent)
        -- Positions in the log, too, are taken in the order in which the events were recorded.
        SELECT id, type, version, aggregate, CAST(payload AS jsonb), request_id, traceparent FROM new ORDER BY ordinal
    ), queued AS (
        INSERT INTO outbox (event_id, aggregate, type, available_at, waits)
        SELECT new.id, aggregate, type, available_at, CASE WHEN available_at IS NOT NULL THEN 'asked' END
        FROM own JOIN new ON queued AND own.id IS NOT NULL ORDER BY ordinal
    )
""")
# In another transaction than the one that locked the rows it deletes nothing.
_DELETE = """
    DELETE FROM outbox WHERE position = ANY(CAST(:positions AS bigint[])) AND (
        CAST(:transaction AS text) IS NULL OR pg_current_xact_id() = CAST(CAST(:transaction AS text) AS xid8)
    )
"""
_COMPLETE = Statement(_DELETE)
_COMPLETED = Writing(f"completed AS ({_DELETE} RETURNING 1)", counted="completed")

LOCK_TIMEOUT = "1s"
"""Ordinary locks are held until a batch commits. Events that wait longer are left out, and the rest processed."""

SHORT_LOCK_TIMEOUT = "100ms"
"""The same once a lock was not granted: a handler that waits for it all the same waits with each part of its batch."""

_NEAR = 4
"""Rows of the queue that a claim looks at for each that it may take, to find what comes before those."""

# Locks the first ready rows and the first due ones of each wanted type, then tells which of them may run: those with no
# earlier row of the same aggregate outside the locked set, and no dead letter that blocks. Everything reads one
# snapshot, so a row that another worker is about to delete still blocks here. The dead rows between the floor and the
# first ready one are passed once, and everything else begins there. What is before a row is mostly near: the
# head of the queue is read once, and only where a row is further on, its aggregate is looked up. The barriers are not
# EXISTS: an ORDER BY keeps the planner on the index, however many rows an aggregate has. Where nothing waits and
# nothing is dead, that is asked once, and not for each aggregate.
_CLAIM = Statement(f"""
    WITH head AS MATERIALIZED (
        SELECT position FROM outbox WHERE available_at IS NULL AND position >= :floor ORDER BY position LIMIT 1
    ), wanted AS MATERIALIZED (
        SELECT entry.* FROM unnest(
            CAST(:types AS text[]), CAST(:starts AS bigint[]), CAST(:ends AS bigint[]), CAST(:ready AS integer[]),
            CAST(:due AS integer[])
        ) AS entry(type, first, past, ready, due)
        LEFT JOIN outbox_types AS control ON control.type = entry.type
        WHERE CASE
            WHEN control.type IS NULL THEN true
            WHEN control.paused THEN false
            WHEN control.max_batches IS NULL THEN true
            -- A slot is taken to the end of the transaction, so not for nothing.
            ELSE (
                EXISTS (
                    SELECT FROM outbox
                    WHERE outbox.type = entry.type AND available_at IS NULL AND position >= entry.first
                ) OR EXISTS (
                    SELECT FROM outbox WHERE outbox.type = entry.type AND available_at <= statement_timestamp()
                    AND available_at < 'infinity'
                )
            ) AND EXISTS (
                SELECT FROM generate_series(1, control.max_batches) AS slot
                WHERE pg_try_advisory_xact_lock(hashtext(current_schema() || ' outbox ' || entry.type), slot)
            )
        END
    ), locked AS MATERIALIZED (
        SELECT row.* FROM wanted CROSS JOIN LATERAL (
            SELECT position, event_id, aggregate, type, attempts, false AS waited FROM outbox
            WHERE outbox.type = wanted.type AND available_at IS NULL
            AND position >= greatest(wanted.first, (SELECT position FROM head)) AND position < wanted.past
            ORDER BY position LIMIT wanted.ready FOR UPDATE SKIP LOCKED
        ) AS row
        UNION ALL
        SELECT row.* FROM wanted CROSS JOIN LATERAL (
            SELECT position, event_id, aggregate, type, attempts, true AS waited FROM outbox
            WHERE outbox.type = wanted.type AND available_at <= statement_timestamp() AND available_at < 'infinity'
            ORDER BY available_at, position LIMIT wanted.due FOR UPDATE SKIP LOCKED
        ) AS row
    ), near AS MATERIALIZED (
        SELECT position, aggregate FROM outbox
        WHERE available_at IS NULL AND position >= (SELECT position FROM head)
        AND position < (SELECT max(position) FROM locked)
        ORDER BY position LIMIT :near
    ), looked AS MATERIALIZED (
        SELECT CASE WHEN count(*) < :near THEN {MAX_POSITION} ELSE max(position) + 1 END AS past FROM near
    ), here AS MATERIALIZED (
        SELECT aggregate, max(mine) AS last, min(other) AS other FROM (
            SELECT aggregate, position AS mine, NULL AS other FROM locked
            UNION ALL
            SELECT aggregate, NULL, position FROM near WHERE position NOT IN (SELECT position FROM locked)
        ) AS rows GROUP BY aggregate HAVING max(mine) IS NOT NULL
    ), barrier AS MATERIALIZED (
        SELECT aggregate, CASE WHEN other IS NOT NULL OR last <= looked.past THEN other ELSE (
            SELECT min(earlier.position) FROM {generations("looked.past", "last")} CROSS JOIN LATERAL (
                SELECT position FROM outbox
                WHERE {ready_of("here.aggregate")} AND position >= looked.past AND position < last
                AND position NOT IN (SELECT position FROM locked)
                ORDER BY {BY_POSITION} LIMIT 1
            ) AS earlier
        ) END AS ready, least(CASE WHEN (SELECT true FROM outbox WHERE available_at IS NOT NULL LIMIT 1) THEN (
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = here.aggregate AND earlier.position < last
            AND earlier.available_at IS NOT NULL AND earlier.waits <> 'asked'
            AND earlier.position NOT IN (SELECT position FROM locked)
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ) END, CASE WHEN (SELECT true FROM dead_letters LIMIT 1) THEN (
            SELECT min(position) FROM dead_letters WHERE dead_letters.aggregate = here.aggregate AND blocks
        ) END) AS waiting
        FROM here CROSS JOIN looked
    )
    SELECT 0 AS position, NULL AS event_id, '' AS aggregate, '' AS type, 0 AS attempts, false AS waited,
        NULL AS version, json_build_object(
            'first_ready', (SELECT position FROM head),
            'last_taken', {LAST_TAKEN},
            'transaction', CAST(CAST(pg_current_xact_id() AS text) AS bigint),
            'oldest_running', CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint),
            'planned', set_config('enable_seqscan', 'on', true) || set_config('enable_bitmapscan', 'on', true)
                || set_config('enable_sort', 'on', true)
        )::text AS payload, NULL AS request_id, NULL AS traceparent, false AS blocked, false AS parks
    UNION ALL
    SELECT locked.position, locked.event_id, locked.aggregate, locked.type, locked.attempts, locked.waited,
        event.version, event.payload::text, event.request_id, event.traceparent,
        coalesce(locked.position > least(barrier.ready, barrier.waiting), false),
        coalesce(locked.position > barrier.waiting, false)
    -- Each has its other half. FULL forbids the nested loop that the planner takes where it expects few rows, as of a
    -- short queue: it would compare each of a batch with each.
    FROM locked FULL JOIN barrier USING (aggregate) LEFT JOIN LATERAL (
        -- The limit forbids the opposite: all of a log that was small when the plan was made.
        SELECT version, payload, request_id, traceparent FROM events WHERE events.id = locked.event_id LIMIT 1
    ) AS event ON true
    ORDER BY position
""")  # noqa: S608

_LOOK = Statement("""
    SELECT bool_or((
        SELECT position FROM outbox WHERE outbox.type = entry.type AND available_at IS NULL AND position >= entry.first
        ORDER BY position LIMIT 1
    ) IS NOT NULL) AS ready, CAST(extract(epoch FROM min((
        SELECT available_at FROM outbox WHERE outbox.type = entry.type AND available_at < 'infinity'
        ORDER BY available_at LIMIT 1
    )) - statement_timestamp()) AS double precision) AS due_in
    FROM unnest(CAST(:types AS text[]), CAST(:starts AS bigint[])) AS entry(type, first)
    WHERE NOT EXISTS (SELECT FROM outbox_types WHERE outbox_types.type = entry.type AND paused)
""")

# Who has taken a position has drawn it from a sequence, and holds a lock on that to the end of the transaction.
_TAKERS = Statement("""
    WITH locks AS MATERIALIZED (
        SELECT virtualtransaction, locktype, mode, database, relation, transactionid FROM pg_locks WHERE granted
    )
    SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own, ARRAY(
        SELECT CAST(CAST(taker.transactionid AS text) AS bigint)
        FROM locks AS taker JOIN locks AS taken USING (virtualtransaction)
        WHERE taker.locktype = 'transactionid' AND taker.mode = 'ExclusiveLock'
        AND taken.locktype = 'relation' AND taken.mode = 'RowExclusiveLock'
        AND taken.relation = CAST('outbox_position_seq' AS regclass)
        AND taken.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS takers
""")

_TRANSACTION = Statement("SELECT CAST(CAST(pg_current_xact_id_if_assigned() AS text) AS bigint) AS id")

_COMMITTED = Statement("SELECT pg_xact_status(CAST(CAST(:transaction AS text) AS xid8)) = 'committed' AS committed")

_BEGIN = Statement("""
    SELECT set_config(name, value, true)
    FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS new(name, value)
""")


def claim_settings(time_limit: float) -> dict[str, str]:
    """PostgreSQL's settings for a transaction that claims; no statement of it may run for longer than so many seconds.

    The statistics of a queue are of another hour: taken of an empty or a huge one, they make the planner read and sort
    all of it. The claim is planned for the indexes that were made for it, and sets these back for the handlers.
    """
    return {
        "statement_timeout": str(int(time_limit * 1000)),
        "lock_timeout": LOCK_TIMEOUT,
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_sort": "off",
        "plan_cache_mode": "force_generic_plan",
    }


class Span(NamedTuple):
    """Where a claim looks for one type: positions from `first` to before `past`; so many ready and due rows at most."""

    type: str
    first: int
    past: int
    ready: int
    due: int


class ClaimedRow(NamedTuple):
    """An outbox row locked by this transaction, with its event from the log (None where the log has lost it).

    `waited` is whether it was not simply ready. One that is `blocked` must not run now; where it `parks`, what blocks
    it waits itself.
    """

    position: int
    event_id: UUID
    aggregate: str
    type: str
    attempts: int
    waited: bool
    version: int | None
    payload: str | None
    request_id: str | None
    traceparent: str | None
    blocked: bool
    parks: bool


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a claim's snapshot says of the positions: which is the first ready one, which are still to come.

    `last_taken` is the highest position that any transaction has taken, `transaction` the claim's own id, and every
    transaction with an id below `oldest_running` has ended.
    """

    first_ready: int | None
    last_taken: int
    transaction: int
    oldest_running: int


_HORIZON = TypeAdapter(Horizon)


class OutboxRepository(WaitingRepository):
    """The event log, the outbox and the dead letters, as writers and workers use them."""

    async def append(self, recorded: Sequence[Recorded]) -> None:
        """Write events to the log, each with where it came from, and an outbox row for each that is queued."""
        await self.sql.write(self.appending(recorded))

    @staticmethod
    def appending(recorded: Sequence[Recorded]) -> Write:
        """`append`, to be sent with other writes."""
        return Write(_APPEND, _columns(recorded))

    async def begin(self, time_limit: float) -> None:
        """Give this transaction the `claim_settings`."""
        settings = claim_settings(time_limit)
        await self.sql.fetch(_BEGIN, names=list(settings), values=list(settings.values()))

    async def shorten_lock_timeout(self) -> None:
        """Let this transaction wait for a lock for `SHORT_LOCK_TIMEOUT` only."""
        await self.sql.fetch(_BEGIN, names=["lock_timeout"], values=[SHORT_LOCK_TIMEOUT])

    async def claim(self, spans: Sequence[Span], floor: int) -> tuple[Horizon, list[ClaimedRow]]:
        """Lock ready and due rows of the spans until the transaction ends.

        No ready row has a position below `floor` (see `Floor`). Types that are paused, or whose batches are all under
        way, are left out.
        """
        header, *rows = await self.sql.fetch(
            _CLAIM,
            types=[span.type for span in spans],
            starts=[span.first for span in spans],
            ends=[span.past for span in spans],
            ready=[span.ready for span in spans],
            due=[span.due for span in spans],
            floor=floor,
            near=_NEAR * sum(span.ready + span.due for span in spans),
        )
        return _HORIZON.validate_json(header["payload"]), [ClaimedRow._make(row.values()) for row in rows]

    async def oldest_taker(self) -> int:
        """An id: transactions with a lower one that have taken a position so far, rows or not, have ended.

        It costs a look at all locks of the server.
        """
        (row,) = await self.sql.fetch(_TAKERS)
        own: int = row["own"]
        return min([own, *(_whole_id(taker, near=own) for taker in row["takers"])])

    async def transaction(self) -> int | None:
        """The id of this transaction, as its claim's horizon says it; None where it has written nothing."""
        (row,) = await self.sql.fetch(_TRANSACTION)
        found: int | None = row["id"]
        return found

    async def was_committed(self, transaction: int) -> bool:
        """Whether the transaction with this id is over and took effect."""
        (row,) = await self.sql.fetch(_COMMITTED, transaction=str(transaction))
        return bool(row["committed"])

    async def look(self, spans: Sequence[Span]) -> tuple[bool, float | None]:
        """Whether a claim may find something now, and in how many seconds something that waits is due."""
        (row,) = await self.sql.fetch(_LOOK, types=[span.type for span in spans], starts=[span.first for span in spans])
        return bool(row["ready"]), row["due_in"]

    async def complete(self, positions: Sequence[int], transaction: int | None = None) -> int:
        """Delete the rows of processed events; their number. With `transaction`, only if this is the one of that id."""
        return await self.sql.run(_COMPLETE, **_completed(positions, transaction))

    @staticmethod
    def completing(positions: Sequence[int], transaction: int) -> Write:
        """`complete`, to be sent with other writes."""
        return Write(_COMPLETED, _completed(positions, transaction))


def _completed(positions: Sequence[int], transaction: int | None) -> dict[str, Any]:
    return {"positions": list(positions), "transaction": None if transaction is None else str(transaction)}


def _columns(recorded: Sequence[Recorded]) -> dict[str, list[Any]]:
    events = [one.event for one in recorded]
    return {
        "ids": [one.event_id for one in recorded],
        "types": [event.type for event in events],
        "versions": [event.version for event in events],
        "aggregates": [event.aggregate for event in events],
        "payloads": [event.model_dump_json() for event in events],
        "request_ids": [one.trace.request_id for one in recorded],
        "traceparents": [one.trace.traceparent for one in recorded],
        "queued": [event.queued for event in events],
        "available_ats": [one.available_at for one in recorded],
    }


def _whole_id(lower: int, *, near: int) -> int:
    """The transaction id with these 32 bits that is nearest to another one; those of running ones are near enough."""
    return near + (lower - near + 2**31) % 2**32 - 2**31
