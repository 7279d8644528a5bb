"""The statements that write events and acts, and those that find two writers of one aggregate's events."""

from services.sql import Statement, Writing

# One statement for all events of a unit of work, whatever their number. The transaction gets its id before it takes a
# position: from the ids of the running transactions, claims know which positions may still appear (`Floor`).
APPEND = Writing("""
    own AS MATERIALIZED (
        SELECT pg_current_xact_id() AS id
    ), new AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:versions AS smallint[]), CAST(:aggregates AS text[]),
            CAST(:payloads AS text[]), CAST(:request_ids AS text[]), CAST(:traceparents AS text[]),
            CAST(:actors AS text[]), CAST(:queued AS boolean[]), CAST(:available_ats AS timestamptz[])
        ) WITH ORDINALITY
        AS new(id, type, version, aggregate, payload, request_id, traceparent, actor, queued, available_at, ordinal)
    ), logged AS (
        INSERT INTO events (id, type, version, aggregate, payload, request_id, traceparent, actor)
        -- The positions in the log are also taken in the order in which the events were recorded.
        SELECT id, type, version, aggregate, CAST(payload AS jsonb), request_id, traceparent, actor
        FROM new ORDER BY ordinal
    ), queued AS (
        INSERT INTO outbox (event_id, aggregate, type, version, available_at, waits)
        SELECT new.id, aggregate, type, version, available_at, CASE WHEN available_at IS NOT NULL THEN 'asked' END
        FROM own JOIN new ON queued AND own.id IS NOT NULL ORDER BY ordinal
    )
""")

KEEP_ACTS = Writing(
    """
    kept_acts AS (
        INSERT INTO audit_log (action, object, actor, user_id, address, request_id, reason, details, number)
        SELECT action, object, actor, user_id, address, request_id, reason, CAST(details AS jsonb), number
        FROM unnest(
            CAST(:actions AS text[]), CAST(:objects AS text[]), CAST(:actors AS text[]), CAST(:user_ids AS bigint[]),
            CAST(:addresses AS text[]), CAST(:request_ids AS text[]), CAST(:reasons AS text[]),
            CAST(:details AS text[]), CAST(:numbers AS integer[])
        ) WITH ORDINALITY AS act(
            action, object, actor, user_id, address, request_id, reason, details, number, ordinal
        ) ORDER BY ordinal RETURNING 1
    )
    """,
    counted="kept_acts",
)

_WRITERS_LOCK = "hashtextextended(current_schema() || ' events of ' || {aggregate}, 0)"

# Each transaction that writes events takes these locks until it ends. If both hold the aggregate's own lock, they have
# already waited for each other. So a transaction that does not get the lock at once has found another writer, or one
# that has just ended and is still releasing its locks. The application name tells the other one which work this is.
RESERVE = Writing(
    f"""
    contended AS MATERIALIZED (
        SELECT FROM unnest(CAST(:aggregates AS text[])) AS mine(aggregate)
        WHERE set_config('application_name', left(
            split_part(current_setting('application_name'), ': ', 1) || ': ' || CAST(:work AS text), 63
        ), true) IS NOT NULL
        AND NOT pg_try_advisory_xact_lock({_WRITERS_LOCK.format(aggregate="mine.aggregate")})
    )
""",
    counted="contended",
)

# The transactions that hold such a lock and have not ended: their id is still the current one of their server process.
OTHER_WRITERS = Statement(f"""
    WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted)
    SELECT mine.aggregate, activity.pid, activity.application_name
    FROM (
        SELECT aggregate, {_WRITERS_LOCK.format(aggregate="aggregate")} AS key
        FROM unnest(CAST(:aggregates AS text[])) AS mine(aggregate)
    ) AS mine
    JOIN locks AS held ON held.locktype = 'advisory' AND held.objsubid = 1
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND CAST(held.classid AS bigint) = (key >> 32) & 4294967295
    AND CAST(held.objid AS bigint) = key & 4294967295
    JOIN locks AS writer ON writer.virtualtransaction = held.virtualtransaction
    AND writer.locktype = 'transactionid' AND writer.mode = 'ExclusiveLock'
    JOIN pg_stat_activity AS activity ON activity.pid = held.pid AND activity.backend_xid = writer.transactionid
    WHERE held.pid <> pg_backend_pid()
""")  # noqa: S608
