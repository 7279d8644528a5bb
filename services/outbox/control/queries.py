"""The operators' statements: dead letters, deferred events, event types, why an event waits, workers."""

from services.outbox.counting.queries import TIMED, types_in
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

COUNT = Statement(f"""
    SELECT count(*) AS number FROM (SELECT FROM dead_letters WHERE {_SELECTED} LIMIT :most) AS found
""")  # noqa: S608
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
    WITH RECURSIVE {types_in("outbox", "timed", TIMED)}
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
        SET beat_at = excluded.beat_at, progress_at = excluded.progress_at,
            report = excluded.report || jsonb_build_object('quiet', workers.asked IS NOT NULL)
        RETURNING asked
    )
    SELECT beat.asked, EXISTS (
            SELECT FROM bulk_actions WHERE state = ANY ('{waiting,running}'::text[])
        ) AS bulk_actions,
        id, host, pid, CAST(report -> 'process' AS text) AS process,
        CAST(extract(epoch FROM statement_timestamp() - beat_at) AS double precision) AS silent_seconds
    FROM beat LEFT JOIN workers ON id <> :id AND (host = :host OR :everywhere)
""")
ASK = Statement("UPDATE workers SET asked = CAST(:wish AS text), asked_by = :actor WHERE id = :id")
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
    SELECT id, host, pid, started_at, beat_at, progress_at, report::text AS report, asked, asked_by,
        CAST(extract(epoch FROM statement_timestamp() - beat_at) AS double precision) AS silent_seconds,
        CAST(extract(epoch FROM statement_timestamp() - progress_at) AS double precision) AS stuck_seconds
    FROM workers WHERE CAST(:host AS text) IS NULL OR host = :host ORDER BY host, pid, started_at
""")
