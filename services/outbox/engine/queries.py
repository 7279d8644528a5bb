"""The engine's statements: claim, look, complete, and the handling of events that wait or fail."""

from services.outbox.models import GENERATION, MAX_POSITION, generation_of
from services.sql import Statement, Writing

LAST_TAKEN = "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_position_seq)"
"""The highest position that any transaction has taken; 0 if none has (the sequence's last value is 1 even then)."""

LIVE = "beat_at > statement_timestamp() - make_interval(secs => 20)"
"""A condition for the workers that are alive: they report every five seconds."""

BY_POSITION = f"{GENERATION}, aggregate, position"
"""The ORDER BY for an aggregate's ready rows of one generation."""


def generations(first: str, last: str) -> str:
    """A FROM item that lists the generations between two positions in its column `generation`."""
    return f"generate_series({generation_of(first)}, {generation_of(last)}) AS generation"


def dead_before(row: str) -> str:
    """A FROM clause: the dead letters that block this row, which has an aggregate and a position."""
    return (
        f"FROM dead_letters WHERE dead_letters.aggregate = {row}.aggregate AND dead_letters.position < {row}.position"
        " AND blocks"
    )


def ready_of(aggregate: str) -> str:
    """A condition for the aggregate's ready rows of one of the `generations`.

    To find the first of them, order by `BY_POSITION`: it keeps the planner on the index.
    """
    return f"available_at IS NULL AND {GENERATION} = generation AND aggregate = {aggregate}"


SET_LOCAL = Statement("""
    SELECT set_config(name, value, true)
    FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS new(name, value)
""")

# The planner's settings as the handlers expect them: those for claims are set on the connection.
_PLAN_AS_USUAL = (
    "set_config('enable_seqscan', 'on', true) || set_config('enable_bitmapscan', 'on', true)"
    " || set_config('enable_sort', 'on', true)"
)


def _takes_slot(event_type: str) -> str:
    """A condition that takes one of the type's slots until the transaction ends; false if all are taken."""
    return f"""EXISTS (
        SELECT FROM generate_series(1, control.max_batches) AS slot
        WHERE pg_try_advisory_xact_lock(hashtext(current_schema() || ' outbox ' || {event_type}), slot)
    )"""


_BLOCKED = "coalesce(locked.position > least(barrier.ready, barrier.waiting), false)"

# Locks the first rows of each wanted type and decides which of them may run: those whose aggregate has no earlier row
# outside the locked set and no dead letter that blocks. Everything reads one snapshot, so a row that another worker is
# about to delete still blocks here.
CLAIM = Statement(f"""
    WITH head AS MATERIALIZED (
        -- The first ready row. Dead rows between the floor and this one are read only once: all other scans start here.
        SELECT position FROM outbox WHERE available_at IS NULL AND position >= :floor ORDER BY position LIMIT 1
    ), wanted AS MATERIALIZED (
        -- The spans whose type is not paused and, if its batches are limited, has a free slot.
        SELECT entry.* FROM unnest(
            CAST(:types AS text[]), CAST(:starts AS bigint[]), CAST(:ends AS bigint[]), CAST(:ready AS integer[]),
            CAST(:due AS integer[]), CAST(:versions AS integer[])
        ) AS entry(type, first, past, ready, due, version)
        LEFT JOIN outbox_types AS control ON control.type = entry.type
        WHERE CASE
            WHEN control.type IS NULL THEN true
            WHEN control.paused THEN false
            WHEN control.max_batches IS NULL THEN true
            -- A slot is held until the transaction ends, so take one only if there is something to process.
            ELSE (
                EXISTS (
                    SELECT FROM outbox
                    WHERE outbox.type = entry.type AND available_at IS NULL AND position >= entry.first
                ) OR EXISTS (
                    SELECT FROM outbox WHERE outbox.type = entry.type AND available_at <= statement_timestamp()
                    AND available_at < 'infinity'
                )
            ) AND {_takes_slot("entry.type")}
        END
    ), locked AS MATERIALIZED (
        -- The first ready rows and the first due rows of each span. Rows that another worker has locked are skipped.
        SELECT row.* FROM wanted CROSS JOIN LATERAL (
            SELECT position, event_id, aggregate, type, attempts, false AS waited, false AS begun FROM outbox
            WHERE outbox.type = wanted.type AND available_at IS NULL
            AND (outbox.version IS NULL OR outbox.version <= wanted.version)
            AND position >= greatest(wanted.first, (SELECT position FROM head)) AND position < wanted.past
            ORDER BY position LIMIT wanted.ready FOR UPDATE SKIP LOCKED
        ) AS row
        UNION ALL
        SELECT row.* FROM wanted CROSS JOIN LATERAL (
            SELECT position, event_id, aggregate, type, attempts, true AS waited, waits = 'begun' AS begun FROM outbox
            WHERE outbox.type = wanted.type AND available_at <= statement_timestamp() AND available_at < 'infinity'
            AND (outbox.version IS NULL OR outbox.version <= wanted.version)
            ORDER BY available_at, position LIMIT wanted.due FOR UPDATE SKIP LOCKED
        ) AS row
    ), near AS MATERIALIZED (
        -- The head of the queue, read once: the rows before a locked row are mostly here.
        SELECT position, aggregate FROM outbox
        WHERE available_at IS NULL AND position >= (SELECT position FROM head)
        AND position < (SELECT max(position) FROM locked)
        ORDER BY position LIMIT :near
    ), looked AS MATERIALIZED (
        -- Where `near` ends. Rows beyond it are looked up for each aggregate.
        SELECT CASE WHEN count(*) < :near THEN {MAX_POSITION} ELSE max(position) + 1 END AS past FROM near
    ), here AS MATERIALIZED (
        -- The aggregates of the locked rows, with the last locked row of each and its first row in `near` that is not.
        SELECT aggregate, max(mine) AS last, min(other) AS other FROM (
            SELECT aggregate, position AS mine, NULL AS other FROM locked
            UNION ALL
            SELECT aggregate, NULL, position FROM near WHERE position NOT IN (SELECT position FROM locked)
        ) AS rows GROUP BY aggregate HAVING max(mine) IS NOT NULL
    ), barrier AS MATERIALIZED (
        -- What an aggregate's locked rows must not overtake: its first other ready row, its first waiting row and its
        -- dead letters. Not EXISTS, because an ORDER BY keeps the planner on the index, however many rows an aggregate
        -- has. Whether anything waits or is dead at all is checked once, not for each aggregate.
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
    -- The first row is the header: the horizon, as JSON. It also restores the planner's settings.
    SELECT 0 AS position, NULL AS event_id, '' AS aggregate, '' AS type, 0 AS attempts, false AS waited,
        false AS begun, NULL AS version, json_build_object(
            'first_ready', (SELECT position FROM head),
            'last_taken', {LAST_TAKEN},
            'transaction', CAST(CAST(pg_current_xact_id() AS text) AS bigint),
            'oldest_running', CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint),
            'backend', pg_backend_pid(),
            'planned', {_PLAN_AS_USUAL}
        )::text AS payload, NULL AS request_id, NULL AS traceparent, false AS blocked, false AS parks
    UNION ALL
    SELECT locked.position, locked.event_id, locked.aggregate, locked.type, locked.attempts, locked.waited,
        locked.begun, event.version, event.payload::text, event.request_id, event.traceparent,
        {_BLOCKED}, coalesce(locked.position > barrier.waiting, false)
    -- Every row has a match, so this is an inner join. FULL rules out the nested loop that the planner chooses when it
    -- expects few rows, as in a short queue: it would compare every row of the batch with every aggregate.
    FROM locked FULL JOIN barrier USING (aggregate) LEFT JOIN LATERAL (
        -- The LIMIT rules out the opposite: a scan of the whole log, if the log was small when the plan was made.
        -- What is blocked does not run, so its event is not read.
        SELECT version, payload, request_id, traceparent FROM events
        WHERE events.id = locked.event_id AND NOT {_BLOCKED} LIMIT 1
    ) AS event ON true
    ORDER BY position
""")  # noqa: S608

LOOK = Statement("""
    SELECT bool_or((
        SELECT position FROM outbox WHERE outbox.type = entry.type AND available_at IS NULL AND position >= entry.first
        AND (outbox.version IS NULL OR outbox.version <= entry.version) ORDER BY position LIMIT 1
    ) IS NOT NULL) AS ready, CAST(extract(epoch FROM min((
        SELECT available_at FROM outbox WHERE outbox.type = entry.type AND available_at < 'infinity'
        AND (outbox.version IS NULL OR outbox.version <= entry.version) ORDER BY available_at LIMIT 1
    )) - statement_timestamp()) AS double precision) AS due_in, pg_backend_pid() AS backend, (
        SELECT position FROM outbox WHERE available_at IS NULL AND position >= :floor ORDER BY position LIMIT 1
    ) IS NOT NULL AS any_ready
    FROM unnest(
        CAST(:types AS text[]), CAST(:starts AS bigint[]), CAST(:versions AS integer[])
    ) AS entry(type, first, version)
    WHERE NOT EXISTS (SELECT FROM outbox_types WHERE outbox_types.type = entry.type AND paused)
""")

# A transaction that has taken a position drew it from a sequence, and holds a lock on the sequence until it ends.
TAKERS = Statement("""
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

# For attempts that may kill their process: what is noted here is committed before they begin.
BEGIN_ATTEMPTS = Statement("""
    UPDATE outbox SET waits = 'begun', attempts = attempts + CAST(:counts AS smallint),
        available_at = clock_timestamp() + make_interval(secs => CAST(:delay AS double precision)),
        last_error = 'the worker process that tried it ended before the attempt did'
    WHERE position = ANY(CAST(:positions AS bigint[]))
""")

# Rows that another worker took meanwhile are left out: it has locked them, or counted an attempt. The commit of the
# note gave the slots of limited types back. A row is `free` if its type is not limited or there is a slot again.
TAKE_UP = Statement(f"""
    WITH taken AS MATERIALIZED (
        SELECT position, type FROM outbox
        WHERE position = ANY(CAST(:positions AS bigint[])) AND waits = 'begun' AND (position, attempts) IN (
            SELECT * FROM unnest(CAST(:positions AS bigint[]), CAST(:attempts AS smallint[]))
        ) FOR UPDATE SKIP LOCKED
    ), crowded AS MATERIALIZED (
        SELECT type FROM outbox_types AS control WHERE CASE
            WHEN max_batches IS NULL OR type <> ALL(ARRAY(SELECT type FROM taken)) THEN false
            ELSE NOT {_takes_slot("control.type")}
        END
    )
    SELECT 0 AS position, CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS transaction,
        {_PLAN_AS_USUAL} AS planned, true AS free
    UNION ALL
    SELECT position, 0, '', type NOT IN (SELECT type FROM crowded) FROM taken
""")  # noqa: S608

# What was to be tried on its own still is.
LEAVE = Statement("""
    UPDATE outbox SET waits = CASE WHEN CAST(:counts AS smallint) > 0 THEN 'begun' ELSE 'behind' END,
        attempts = attempts - CAST(:counts AS smallint), available_at = statement_timestamp(), last_error = NULL
    WHERE position = ANY(CAST(:positions AS bigint[])) AND waits = 'begun'
""")

PUT_BEHIND = Statement("""
    UPDATE outbox SET waits = 'behind', available_at = clock_timestamp() + make_interval(secs => held.delay)
    FROM unnest(CAST(:positions AS bigint[]), CAST(:delays AS double precision[])) AS held(position, delay)
    WHERE outbox.position = held.position
""")

# Deletes nothing if this is not the transaction that locked the rows.
_DELETE = """
    DELETE FROM outbox WHERE position = ANY(CAST(:positions AS bigint[])) AND (
        CAST(:transaction AS text) IS NULL OR pg_current_xact_id() = CAST(CAST(:transaction AS text) AS xid8)
    )
"""
COMPLETE = Statement(_DELETE)
COMPLETED = Writing(f"completed AS ({_DELETE} RETURNING 1)", counted="completed")

# A row waits for the aggregate's first waiting row, or for a dead letter. The lock on that one, a shared lock, keeps it
# from being processed or replayed before this commit: both wake the rows that wait by then. If that one is already
# locked, it is being processed, and there is no need to park this row.
PARK = Statement(f"""
    UPDATE outbox SET waits = 'behind', available_at = 'infinity'
    WHERE position = ANY(CAST(:positions AS bigint[])) AND CASE WHEN EXISTS (SELECT {dead_before("outbox")}) THEN (
        SELECT position {dead_before("outbox")} LIMIT 1 FOR SHARE SKIP LOCKED
    ) ELSE (
        SELECT root.position FROM outbox AS root WHERE root.available_at < 'infinity' AND root.position = (
            SELECT earlier.position FROM outbox AS earlier
            WHERE earlier.aggregate = outbox.aggregate AND earlier.position < outbox.position
            AND earlier.available_at IS NOT NULL AND earlier.waits <> 'asked'
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ) FOR SHARE SKIP LOCKED
    ) END IS NOT NULL
    RETURNING position, aggregate
""")  # noqa: S608

# A failure that does not count as an attempt may recur for ever, so it is added to the history only once.
PUT_OFF = Statement("""
    UPDATE outbox SET waits = failed.waits, attempts = attempts + failed.counts, last_error = failed.error,
        available_at = clock_timestamp() + make_interval(secs => failed.delay),
        failures = CASE WHEN failed.failure IS NULL OR (failed.once AND coalesce(failures, '[]') @>
                jsonb_build_array(jsonb_build_object('error', CAST(failed.failure AS jsonb) -> 'error'))) THEN failures
            ELSE coalesce(failures, '[]') || CAST(failed.failure AS jsonb) END
    FROM unnest(
        CAST(:positions AS bigint[]), CAST(:waits AS text[]), CAST(:counts AS smallint[]), CAST(:once AS boolean[]),
        CAST(:delays AS double precision[]), CAST(:errors AS text[]), CAST(:failures AS text[])
    ) AS failed(position, waits, counts, once, delay, error, failure)
    WHERE outbox.position = failed.position
""")


def _waiting_after(start: str, condition: str) -> str:
    """A FROM item: an aggregate's next waiting rows, as long as they meet the condition, and at most `:most`.

    They come after `start`, which has an aggregate and a position. Deferred rows are passed over: nothing waits for
    them. The rows are found one by one: for a range of rows, the planner would prefer to read and sort all that the
    aggregate has.
    """

    def following(aggregate: str, position: str) -> str:
        return f"""
            SELECT position, available_at, waits FROM outbox AS later
            WHERE later.aggregate = {aggregate} AND later.position > {position}
            AND later.available_at IS NOT NULL AND later.waits <> 'asked'
            ORDER BY later.aggregate, later.position LIMIT 1
        """  # noqa: S608

    return f"""LATERAL (
        WITH RECURSIVE run(position, number) AS (
            SELECT position, 1 FROM ({following(f"{start}.aggregate", f"{start}.position")}) AS next WHERE {condition}
            UNION ALL
            SELECT next.position, number + 1 FROM run
            CROSS JOIN LATERAL ({following(f"{start}.aggregate", "run.position")}) AS next
            WHERE number < :most AND {condition}
        ) SELECT position FROM run
    )"""  # noqa: S608


# Rows that another worker has locked are skipped: that worker will find out by itself, and nothing waits for a lock
# here. For each aggregate it takes at most `most` ready rows, and the `most` rows that are due next. Rows beyond are
# parked by the claims that find them. ANY(ARRAY(...)) makes the planner update each row by its key, however many rows
# it expects.
HOLD_BACK = Statement(f"""
    UPDATE outbox SET waits = 'behind', available_at = 'infinity' WHERE position = ANY(ARRAY(
        SELECT held.position
        FROM unnest(CAST(:aggregates AS text[]), CAST(:positions AS bigint[])) AS failed(aggregate, position)
        CROSS JOIN LATERAL (
            (
                SELECT ready.position FROM {generations("failed.position", LAST_TAKEN)} CROSS JOIN LATERAL (
                    SELECT position FROM outbox
                    WHERE {ready_of("failed.aggregate")} AND position > failed.position
                    ORDER BY {BY_POSITION} LIMIT :most FOR UPDATE SKIP LOCKED
                ) AS ready LIMIT :most
            )
            UNION ALL
            SELECT due.position FROM (
                SELECT position FROM outbox WHERE position = ANY(ARRAY(
                    SELECT position
                    FROM {_waiting_after("failed", "next.waits = 'behind' AND next.available_at < 'infinity'")} AS next
                )) AND waits = 'behind' AND available_at < 'infinity' FOR UPDATE SKIP LOCKED
            ) AS due
        ) AS held
    ))
""")  # noqa: S608

BURY = Statement("""
    WITH failed AS (
        SELECT * FROM unnest(
            CAST(:positions AS bigint[]), CAST(:errors AS text[]), CAST(:fingerprints AS text[]),
            CAST(:failures AS text[]), CAST(:blocks AS boolean[]), CAST(:reasons AS text[]),
            CAST(:counts AS smallint[])
        ) AS failed(position, error, fingerprint, failure, blocks, reason, counts)
    ), removed AS (
        DELETE FROM outbox USING failed WHERE outbox.position = failed.position
        RETURNING outbox.position, outbox.event_id, outbox.aggregate, outbox.type,
            outbox.attempts + failed.counts AS attempts, outbox.failures, failed.error, failed.fingerprint,
            failed.failure, failed.blocks, failed.reason
    )
    INSERT INTO dead_letters (
        position, event_id, aggregate, type, attempts, error, fingerprint, failures, blocks, reason
    )
    SELECT position, event_id, aggregate, type, attempts, error, fingerprint,
        coalesce(failures, '[]') || CAST(failure AS jsonb), blocks, reason
    FROM removed
""")

# Wakes only the first rows of each aggregate that sleep, and only if no waiting row is before them: that one wakes them
# when it is out of the way. So one window of an aggregate is awake at a time, however many rows sleep behind it, and a
# batch in the middle of a window reads one row.
WAKE = Statement(f"""
    UPDATE outbox SET available_at = statement_timestamp() WHERE position = ANY(ARRAY(
        SELECT next.position
        FROM unnest(CAST(:aggregates AS text[]), CAST(:positions AS bigint[])) AS passed(aggregate, position)
        CROSS JOIN {_waiting_after("passed", "next.available_at = 'infinity'")} AS next
    )) AND waits = 'behind' AND available_at = 'infinity'
""")  # noqa: S608


def sleeps_for_nothing(row: str) -> str:
    """A condition for the first waiting row of an aggregate: it sleeps, although nothing is left to wake it."""
    return f"{row}.available_at = 'infinity' AND NOT EXISTS (SELECT {dead_before(row)})"


def _stranded(aggregate: str) -> str:
    """A FROM item: the aggregate's first waiting row, and whether it sleeps although nothing is left to wake it."""
    return f"""LATERAL (
        SELECT position, {sleeps_for_nothing("waiting")} AS stranded FROM (
            SELECT aggregate, position, available_at FROM outbox AS later
            WHERE later.aggregate = {aggregate} AND later.available_at IS NOT NULL AND later.waits <> 'asked'
            ORDER BY later.aggregate, later.position LIMIT 1
        ) AS waiting
    )"""  # noqa: S608


# One look-up for each aggregate, however many rows it has.
WAITING_AGGREGATES = Statement(f"""
    WITH RECURSIVE here(aggregate, number) AS (
        (
            SELECT CAST(aggregate AS text), 1 FROM outbox
            WHERE available_at IS NOT NULL AND aggregate > :after ORDER BY outbox.aggregate, position LIMIT 1
        )
        UNION ALL
        SELECT next.aggregate, number + 1 FROM here CROSS JOIN LATERAL (
            SELECT CAST(outbox.aggregate AS text) AS aggregate FROM outbox
            WHERE available_at IS NOT NULL AND outbox.aggregate > here.aggregate
            ORDER BY outbox.aggregate, position LIMIT 1
        ) AS next WHERE number < :most
    )
    SELECT here.aggregate, coalesce(first.stranded, false) AS stranded
    FROM here LEFT JOIN {_stranded("here.aggregate")} AS first ON true ORDER BY here.number
""")  # noqa: S608

# The first row of each is enough: it wakes the others when it is processed.
WAKE_STRANDED = Statement(f"""
    UPDATE outbox SET available_at = statement_timestamp() WHERE position = ANY(ARRAY(
        SELECT first.position FROM unnest(CAST(:aggregates AS text[])) AS here(aggregate)
        CROSS JOIN {_stranded("here.aggregate")} AS first WHERE first.stranded
    )) AND waits = 'behind' AND available_at = 'infinity' RETURNING aggregate
""")  # noqa: S608

# Looks at a slice that starts at the first ready row: the events at the head of the queue that no worker takes.
PARK_UNKNOWN = Statement(f"""
    WITH known AS MATERIALIZED (
        SELECT type, max(version) AS version FROM (
            SELECT * FROM unnest(CAST(:types AS text[]), CAST(:versions AS integer[])) AS own(type, version)
            UNION ALL
            SELECT key, CAST(value AS integer) FROM workers, jsonb_each_text(report -> 'versions')
            WHERE {LIVE}
        ) AS worker GROUP BY type
    )
    UPDATE outbox SET waits = 'unknown', available_at = statement_timestamp(),
        last_error = format('no worker has a handler for version %s of %L', coalesce(version, 1), type)
    WHERE position = ANY(ARRAY(
        SELECT position FROM outbox AS unknown WHERE available_at IS NULL AND position = ANY(ARRAY(
            SELECT position FROM (
                SELECT position, type, version FROM outbox WHERE available_at IS NULL AND position >= :floor
                ORDER BY position LIMIT :slice
            ) AS head WHERE NOT EXISTS (
                SELECT FROM known
                WHERE known.type = head.type AND (head.version IS NULL OR head.version <= known.version)
            )
        )) FOR UPDATE SKIP LOCKED
    ))
""")  # noqa: S608
