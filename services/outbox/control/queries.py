"""The operators' statements: dead letters, deferred events, event types, why an event waits, workers."""

from services.outbox.engine.queries import BY_POSITION, LAST_TAKEN, LIVE, dead_before, generations, ready_of
from services.sql import Statement

_SELECTED = """
    (CAST(:position AS bigint) IS NULL OR position = :position)
    AND (CAST(:event_id AS uuid) IS NULL OR event_id = :event_id)
    AND (CAST(:type AS text) IS NULL OR type = :type)
    AND (CAST(:aggregate AS text) IS NULL OR aggregate = :aggregate)
    AND (CAST(:fingerprint AS text) IS NULL OR fingerprint = :fingerprint)
    AND (CAST(:died_from AS timestamptz) IS NULL OR died_at >= :died_from)
    AND (CAST(:died_before AS timestamptz) IS NULL OR died_at < :died_before)
    AND (CAST(:reason AS text) IS NULL OR reason = :reason)
    AND (CAST(:positions AS bigint[]) IS NULL OR position = ANY(:positions))
"""

_SHOWN = 2000
"""How much of the end of an error is read for each dead letter of a list: its summary, and room before it."""

COUNT = Statement(f"SELECT count(*) AS number FROM dead_letters WHERE {_SELECTED}")  # noqa: S608

HEADS = Statement(f"""
    SELECT position, event_id, aggregate, type, fingerprint, died_at, right(error, {_SHOWN}) AS error
    FROM dead_letters
    WHERE {_SELECTED} AND position > :after ORDER BY position LIMIT :slice
""")  # noqa: S608

# A separate statement before the change: it waits for transactions that are parking events behind one of these dead
# letters, and the next statement sees what they have done.
LOCK = Statement(f"{HEADS.text} FOR UPDATE")


def _message(error: str) -> str:
    """The summary of an event's last error, from its history or, if that is empty, from the stored error."""
    last_line = f"substring(rtrim({error}, chr(10)) FROM '[^' || chr(10) || ']*$')"
    return f"coalesce(failures -> -1 ->> 'error', left({last_line}, 500))"


_WHEN_IT_FAILED = "(SELECT coalesce(jsonb_agg(failure - 'error'), '[]') FROM jsonb_array_elements(failures) AS failure)"
"""An event's history without the summaries of its errors."""

# Errors that were stored before there were fingerprints are a kind of their own.
_KIND = "coalesce(nullif(fingerprint, ''), left(md5(error), 16))"


def _keep_errors(taken: str) -> str:
    """A query that stores the error of each kind once. The columns of `taken` are `fingerprint` and `error`.

    In the order of the fingerprints, so that two transactions that do this at once do not deadlock.
    """
    return f"""
        INSERT INTO outbox_errors (fingerprint, error)
        SELECT DISTINCT ON (fingerprint) fingerprint, error FROM ({taken}) AS failed
        WHERE fingerprint IS NOT NULL ORDER BY fingerprint
        ON CONFLICT (fingerprint) DO NOTHING
    """  # noqa: S608


# Says in the audit trail which bulk action an entry belongs to.
_OF_BULK = "jsonb_strip_nulls(jsonb_build_object('bulk_action', CAST(:bulk AS text)))"


def _audit_letters(action: str, more: str = "") -> str:
    """Queries that record what was done to the dead letters in `taken`, and keep an error of each kind."""
    return f"""
        kept AS ({_keep_errors(f"SELECT {_KIND} AS fingerprint, error FROM taken")}), audited AS (
            INSERT INTO outbox_actions (actor, action, type, event_id, aggregate, reason, detail)
            SELECT :actor, '{action}', type, event_id, aggregate, :reason, jsonb_build_object(
                'position', position, 'attempts', attempts, 'died_at', died_at, 'fingerprint', {_KIND},
                'message', {_message("error")}{more}
            ) || {_OF_BULK} FROM taken
        )
    """  # noqa: S608


REPLAY = Statement(f"""
    WITH taken AS (
        DELETE FROM dead_letters WHERE position = ANY(CAST(:positions AS bigint[])) RETURNING *
    ), {_audit_letters("replay")}
    INSERT INTO outbox (position, event_id, aggregate, type, version, available_at, waits, failures)
    SELECT position, event_id, aggregate, type, (SELECT version FROM events WHERE events.id = taken.event_id LIMIT 1),
        statement_timestamp(), 'retry', failures
    FROM taken
""")  # noqa: S608

DISCARD = Statement(f"""
    WITH taken AS (
        DELETE FROM dead_letters WHERE position = ANY(CAST(:positions AS bigint[])) RETURNING *
    ), {_audit_letters("discard", f", 'failures', {_WHEN_IT_FAILED}")}
    SELECT FROM taken
""")  # noqa: S608

# Uses the log's key and the index of waiting rows by aggregate: the outbox has no index on the event's id.
LOCK_DEFERRED = Statement("""
    SELECT position, type, event_id, aggregate FROM outbox
    WHERE aggregate = (SELECT aggregate FROM events WHERE id = :event_id) AND event_id = :event_id
    AND available_at IS NOT NULL AND waits = 'asked'
    FOR UPDATE SKIP LOCKED
""")

CANCEL = Statement("""
    WITH taken AS (DELETE FROM outbox WHERE position = :position RETURNING *)
    INSERT INTO outbox_actions (actor, action, type, event_id, aggregate, reason, detail)
    SELECT :actor, 'cancel', type, event_id, aggregate, :reason,
        jsonb_build_object('position', position, 'available_at', available_at)
    FROM taken
""")

# A row that a claim has locked is being processed; one with a shared lock has just had an event parked behind it.
LOCK_WAITING = Statement("""
    SELECT waits, type, event_id, aggregate FROM outbox
    WHERE position = :position AND available_at IS NOT NULL FOR UPDATE SKIP LOCKED
""")


def _audit_waiting(action: str, more: str = "") -> str:
    return f"""
        INSERT INTO outbox_actions (actor, action, type, event_id, aggregate, reason, detail)
        SELECT :actor, '{action}', type, event_id, aggregate, :reason, jsonb_build_object(
            'position', position, 'waits', waits, 'attempts', attempts, 'fingerprint', failures -> -1 ->> 'fingerprint',
            'message', {_message("last_error")}{more}
        ) || {_OF_BULK} FROM taken
    """  # noqa: S608


RETRY_NOW = Statement(f"""
    WITH taken AS (
        UPDATE outbox SET available_at = statement_timestamp() WHERE position = ANY(:positions) RETURNING *
    ) {_audit_waiting("retry_now")}
""")  # noqa: S608

# Those that were buried before their first attempt are one kind for each type. An event that the release before has
# tried has a history without reasons.
BURY_WAITING = Statement(f"""
    WITH taken AS (
        DELETE FROM outbox WHERE position = ANY(CAST(:positions AS bigint[])) RETURNING *
    ), audited AS ({_audit_waiting("bury")})
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures, reason)
    SELECT position, event_id, aggregate, type, attempts,
        coalesce(last_error, 'buried by an operator before its first attempt'),
        coalesce(failures -> -1 ->> 'fingerprint', left(md5('buried ' || type), 16)), coalesce(failures, '[]'),
        CASE WHEN waits = 'unknown' THEN 'unknown_version' WHEN waits = 'begun' THEN 'worker_died'
            WHEN failures IS NULL THEN 'buried' ELSE failures -> -1 ->> 'reason' END
    FROM taken
""")  # noqa: S608

# The last error is not the last one of the history if it did not count as a failure.
_LAST_FAILURE = """
    SELECT failures -> -1 ->> 'fingerprint' AS fingerprint, last_error AS error FROM taken
    WHERE strpos(last_error, failures -> -1 ->> 'error') > 0
"""

DISCARD_WAITING = Statement(f"""
    WITH taken AS (
        DELETE FROM outbox WHERE position = :position RETURNING *
    ), kept AS ({_keep_errors(_LAST_FAILURE)})
    {_audit_waiting("discard", f", 'failures', {_WHEN_IT_FAILED}")}
""")  # noqa: S608

AUDIT_CONSUMER = Statement("""
    INSERT INTO outbox_actions (actor, action, type, reason, detail)
    VALUES (:actor, :action, '', :reason, jsonb_build_object('consumer', CAST(:consumer AS text)))
""")

_AUDIT_TYPE = """
    INSERT INTO outbox_actions (actor, action, type, reason, detail)
    SELECT changed_by, :action, type, :reason, jsonb_build_object('paused', paused, 'max_batches', max_batches)
    FROM changed
"""

PAUSE = Statement(f"""
    WITH changed AS (
        INSERT INTO outbox_types AS control (type, paused, changed_by) VALUES (:type, :paused, :actor)
        ON CONFLICT (type) DO UPDATE
        SET paused = excluded.paused, changed_at = excluded.changed_at, changed_by = excluded.changed_by
        RETURNING *
    ) {_AUDIT_TYPE}
""")  # noqa: S608

LIMIT = Statement(f"""
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


def _types_in(table: str, name: str, condition: str, order: str = "type") -> str:
    """A recursive query: the types of the table's rows that match, each with the aggregate of one row.

    It is a loose index scan: one look-up for each type, however many rows there are.
    """
    return f"""
        {name}(type, aggregate) AS (
            (SELECT type, aggregate FROM {table} WHERE {condition} ORDER BY {order} LIMIT 1)
            UNION ALL
            SELECT following.* FROM {name} CROSS JOIN LATERAL (
                SELECT {table}.type, {table}.aggregate FROM {table} WHERE {condition} AND {table}.type > {name}.type
                ORDER BY {table}.{order} LIMIT 1
            ) AS following
        )
    """  # noqa: S608


_READY = "available_at IS NULL"
_FOUND = f"""
    {_types_in("outbox", "ready", _READY)}, {_types_in("outbox", "waiting", "available_at IS NOT NULL")},
    {_types_in("dead_letters", "dead", "true", "type, position")}
"""

_HANDLED = f"""
    SELECT handled.type, count(*) AS workers FROM workers
    CROSS JOIN LATERAL jsonb_array_elements_text(report -> 'types') AS handled(type) WHERE {LIVE} GROUP BY 1
"""  # noqa: S608

# Of the log, only the end is read: it has no index on the type.
NAMES = Statement(f"""
    WITH RECURSIVE {_FOUND}, logged AS (SELECT type FROM events ORDER BY position DESC LIMIT 10000)
    SELECT type FROM ready UNION SELECT type FROM waiting UNION SELECT type FROM ({_HANDLED}) AS handled
    UNION SELECT type FROM dead UNION SELECT type FROM outbox_types UNION SELECT type FROM logged
""")  # noqa: S608

# All events of a type are about the same kind of aggregate, so one event of each type is enough.
KINDS = Statement(f"""
    WITH RECURSIVE {_FOUND}
    SELECT DISTINCT split_part(aggregate, '/', 1) AS kind FROM (
        SELECT aggregate FROM ready UNION ALL SELECT aggregate FROM waiting UNION ALL SELECT aggregate FROM dead
    ) AS found ORDER BY kind
""")  # noqa: S608

TYPES = Statement(f"""
    WITH RECURSIVE {_FOUND}, handled AS ({_HANDLED}), known AS (
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
        (SELECT count(*) FROM (
            -- A range, so that only the index by type has this order.
            SELECT FROM dead_letters WHERE type BETWEEN known.type AND known.type
            ORDER BY dead_letters.type, position LIMIT :counted + 1
        ) AS bounded) AS dead_letters, coalesce(handled.workers, 0) AS workers
    FROM known LEFT JOIN outbox_types AS control ON control.type = known.type
    LEFT JOIN handled ON handled.type = known.type
    ORDER BY known.type
""")  # noqa: S608

# While a transaction that has locked or deleted the row is running, `xmax` is its id.
_FACTS = f"""
    SELECT outbox.position, outbox.event_id, outbox.aggregate, outbox.type, outbox.waits,
        nullif(outbox.available_at, 'infinity') AS until,
        coalesce(outbox.available_at <= statement_timestamp(), true) AS due,
        outbox.attempts, outbox.last_error AS error, outbox.failures -> -1 ->> 'at' AS failed_at,
        (SELECT occurred_at FROM events WHERE events.id = outbox.event_id) AS occurred_at,
        activity.pid, activity.application_name AS application, activity.xact_start AS locked_at,
        coalesce(control.paused, false) AS paused, control.max_batches, control.changed_at, control.changed_by,
        CASE WHEN control.max_batches IS NOT NULL THEN ({_SLOTS.format(type="outbox.type")}) ELSE 0 END AS batches,
        EXISTS (SELECT FROM workers WHERE {LIVE} AND report -> 'types' ? outbox.type) AS handled,
        (
            SELECT min(dead_letters.position) {dead_before("outbox")}
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

ROW = Statement(f"{_FACTS} WHERE outbox.position = :position")
ROWS_OF_AGGREGATE = Statement(f"""
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
LETTERS_OF = Statement("SELECT position FROM dead_letters WHERE aggregate = :aggregate ORDER BY position LIMIT :slice")
POSITION = Statement(f"""
    WITH wanted AS MATERIALIZED (SELECT aggregate FROM events WHERE id = :event_id)
    SELECT position FROM outbox
    WHERE available_at IS NOT NULL AND aggregate = (SELECT aggregate FROM wanted) AND event_id = :event_id
    UNION ALL
    SELECT position FROM {generations("0", LAST_TAKEN)} JOIN outbox
    ON {ready_of("(SELECT aggregate FROM wanted)")} AND event_id = :event_id
    UNION ALL
    SELECT position FROM dead_letters WHERE event_id = :event_id
""")  # noqa: S608

# Events behind one of a paused type, or of a type whose slots are full, are looked at again from time to time. This
# makes them due now; those beyond the LIMIT come due by themselves.
LOOK_AGAIN = Statement(f"""
    WITH RECURSIVE {_types_in("outbox", "timed", "available_at < 'infinity'")}
    UPDATE outbox SET available_at = statement_timestamp() WHERE position = ANY(ARRAY(
        SELECT row.position FROM timed CROSS JOIN LATERAL (
            SELECT position FROM outbox
            WHERE outbox.type = timed.type AND available_at > statement_timestamp() AND available_at < 'infinity'
            AND waits = 'behind' ORDER BY available_at, position LIMIT 10000 FOR UPDATE SKIP LOCKED
        ) AS row
    ))
""")  # noqa: S608

# The others are read as they were before it, which is what the caller compares itself with.
BEAT = Statement("""
    WITH beat AS (
        INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)
        VALUES (
            :id, :host, :pid, statement_timestamp() - make_interval(secs => CAST(:age AS double precision)),
            statement_timestamp(),
            statement_timestamp() - make_interval(secs => CAST(:stuck AS double precision)), CAST(:report AS jsonb)
        )
        ON CONFLICT (id) DO UPDATE
        SET beat_at = excluded.beat_at, progress_at = excluded.progress_at, report = excluded.report
    )
    SELECT id, host, pid, CAST(report -> 'process' AS text) AS process,
        CAST(extract(epoch FROM statement_timestamp() - beat_at) AS double precision) AS silent_seconds
    FROM workers WHERE id <> :id AND (host = :host OR :everywhere)
""")
LEAVE = Statement("DELETE FROM workers WHERE id = :id")
CLEAR = Statement("""
    DELETE FROM workers WHERE id = ANY(ARRAY(
        SELECT id FROM workers WHERE id = ANY(CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED
    ))
""")
LOST = Statement("""
    SELECT id FROM workers WHERE beat_at < statement_timestamp() - interval '1 day' AND id > :after
    ORDER BY id LIMIT :limit
""")
FORGET = Statement("""
    DELETE FROM workers WHERE id = ANY(ARRAY(
        SELECT id FROM workers WHERE id = ANY(CAST(:ids AS uuid[]))
        AND beat_at < statement_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
    )) RETURNING id
""")
WORKERS = Statement("""
    SELECT id, host, pid, started_at, beat_at, progress_at, report::text AS report,
        CAST(extract(epoch FROM statement_timestamp() - beat_at) AS double precision) AS silent_seconds,
        CAST(extract(epoch FROM statement_timestamp() - progress_at) AS double precision) AS stuck_seconds
    FROM workers WHERE CAST(:host AS text) IS NULL OR host = :host ORDER BY host, pid, started_at
""")

_PARKED = f"""
    (
        EXISTS (SELECT {dead_before("found")}) OR coalesce((
            SELECT earlier.available_at > clock_timestamp() FROM outbox AS earlier
            WHERE earlier.aggregate = found.aggregate AND earlier.position < found.position
            AND earlier.available_at IS NOT NULL AND earlier.waits <> 'asked'
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ), false)
    )
"""  # noqa: S608
"""Whether a row waits, or will as soon as a claim finds it, behind a dead letter or an event that is not due yet."""

_PAUSED = "EXISTS (SELECT FROM outbox_types WHERE outbox_types.type = {type} AND paused)"

PLAN_BY_INDEX = Statement("SELECT set_config(name, 'off', true) FROM unnest(CAST(:names AS text[])) AS name")

# No part reads more than `counted` + 1 rows, or so many of each type, if it is planned without bitmaps and sorts: with
# outdated statistics, the planner would sort all waiting rows. The statement restores these settings. What is parked is
# not due: rows that wait for a worker that knows their type, for a time in the future, or behind a dead letter or a row
# that waits; and rows of a paused type.
BACKLOG = Statement(f"""
    WITH RECURSIVE {_types_in("outbox", "ready", _READY)}, {_types_in("outbox", "timed", "available_at < 'infinity'")},
    soonest AS MATERIALIZED (
        SELECT row.* FROM timed CROSS JOIN LATERAL (
            SELECT position, aggregate, type, available_at, attempts, waits FROM outbox
            WHERE outbox.type = timed.type AND available_at < 'infinity'
            ORDER BY available_at, position LIMIT :counted + 1
        ) AS row
    ), due AS (
        SELECT (SELECT occurred_at FROM events WHERE id = first.event_id) AS since FROM ready CROSS JOIN LATERAL (
            SELECT event_id FROM (
                SELECT position, event_id, aggregate FROM outbox WHERE outbox.type = ready.type AND available_at IS NULL
                ORDER BY position LIMIT :counted
            ) AS found WHERE NOT {_PARKED} ORDER BY position LIMIT 1
        ) AS first WHERE NOT {_PAUSED.format(type="ready.type")}
        UNION ALL (
            SELECT available_at FROM soonest AS found
            WHERE available_at <= clock_timestamp() AND waits <> 'unknown' AND NOT {_PARKED}
            AND NOT {_PAUSED.format(type="found.type")}
            ORDER BY available_at LIMIT 1
        )
    )
    SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT :counted + 1) AS bounded) AS waiting,
        (SELECT count(*) FROM soonest WHERE attempts > 0) AS retrying,
        (SELECT count(*) FROM (SELECT FROM dead_letters LIMIT :counted + 1) AS bounded) AS dead_letters,
        coalesce((SELECT extract(epoch FROM clock_timestamp() - min(since)) FROM due), 0)::float AS oldest_due_seconds,
        set_config('enable_bitmapscan', 'on', true) || set_config('enable_sort', 'on', true) AS planned
""")  # noqa: S608

# What waits forever is behind another event. No index has its types, so it is found among the first waiting rows.
WAITING = Statement(f"""
    WITH RECURSIVE {_types_in("outbox", "ready", _READY)}, {_types_in("outbox", "timed", "available_at < 'infinity'")},
    found AS (
        SELECT ready.type, 'ready' AS reason, true AS due FROM ready CROSS JOIN LATERAL (
            SELECT FROM outbox WHERE outbox.type = ready.type AND available_at IS NULL LIMIT :counted
        ) AS row
        UNION ALL SELECT timed.type, row.waits, row.due FROM timed CROSS JOIN LATERAL (
            SELECT waits, available_at <= clock_timestamp() AND waits <> 'unknown' AS due FROM outbox
            WHERE outbox.type = timed.type AND available_at < 'infinity' ORDER BY available_at, position LIMIT :counted
        ) AS row
        UNION ALL SELECT type, 'behind', false FROM (
            SELECT type, available_at FROM outbox WHERE available_at IS NOT NULL
            ORDER BY aggregate, position LIMIT :counted
        ) AS row WHERE available_at = 'infinity'
    )
    SELECT type, reason, count(*) AS events, count(*) FILTER (WHERE due) AS due,
        {_PAUSED.format(type="found.type")} AS paused
    FROM found GROUP BY type, reason
""")  # noqa: S608
