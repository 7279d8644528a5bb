"""The statements that compare stored transaction ids and sequences with the cluster, and that correct them."""

from services.outbox.models import NOTHING_SEEN

# Committed transactions are below the snapshot's upper end; only the asking one may be above it.
STORED = """
    WITH own AS MATERIALIZED (
        SELECT greatest(pg_snapshot_xmax(pg_current_snapshot()), pg_current_xact_id_if_assigned()) AS newest
    )
    SELECT (SELECT system_identifier FROM log_origin) AS identifier,
        coalesce((SELECT transaction_id FROM events ORDER BY transaction_id DESC LIMIT 1) > newest, false)
        OR EXISTS (
            SELECT FROM log_consumers WHERE greatest(pg_snapshot_xmax(seen), pg_snapshot_xmax(reading)) > newest
        ) AS ahead,
        has_function_privilege('pg_control_system()', 'EXECUTE') AS readable
    FROM own
"""

IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"

MIGRATED = "SELECT to_regclass('log_origin') IS NOT NULL"

# Sequences of identity and serial columns, and others that a column's default takes a value from.
COUNTERS = """
    WITH taken AS MATERIALIZED (
        SELECT oid, relname FROM pg_class WHERE relkind = 'S' AND relnamespace = current_schema()::regnamespace
    )
    SELECT DISTINCT quote_ident(taken.relname) AS sequence, quote_ident(class.relname) AS table,
        quote_ident(attribute.attname) AS column
    FROM taken
    JOIN pg_depend AS depend ON depend.refclassid = 'pg_class'::regclass
    LEFT JOIN pg_attrdef AS given ON depend.classid = 'pg_attrdef'::regclass AND given.oid = depend.objid
    JOIN pg_attribute AS attribute
        ON attribute.attrelid = coalesce(given.adrelid, depend.refobjid)
        AND attribute.attnum = coalesce(given.adnum, depend.refobjsubid)
    JOIN pg_class AS class ON class.oid = attribute.attrelid AND NOT class.relispartition
    WHERE has_sequence_privilege(taken.oid, 'SELECT')
    AND (
        (depend.classid = 'pg_class'::regclass AND depend.objid = taken.oid AND depend.deptype IN ('a', 'i'))
        OR (given.oid IS NOT NULL AND depend.refobjid = taken.oid)
    )
    ORDER BY 1, 2
"""

BEHIND = """
    SELECT '{sequence}' AS name, (SELECT max({column}) FROM {table}) AS highest
    FROM {sequence} WHERE (SELECT max({column}) FROM {table}) >= last_value + CAST(is_called AS integer)
"""

ADVANCE = "SELECT setval(CAST(:sequence AS regclass), :highest)"

LOCK = (
    "SET LOCAL lock_timeout = '2s'",
    "LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE",
    "LOCK TABLE log_consumers IN EXCLUSIVE MODE",
)

# Events that were written here, after the ones from the other cluster.
FIRST_FOREIGN = "SELECT min(position) FROM events WHERE transaction_id > pg_snapshot_xmax(pg_current_snapshot())"

# The consumers that have not read an event, as text; '[]' if all have. A consumer that has seen nothing stays as it is.
_UNREAD = f"""
    CAST(to_jsonb(ARRAY(
        SELECT name FROM log_consumers AS consumer
        WHERE (consumer.seen::text <> '{NOTHING_SEEN}' OR consumer.reading IS NOT NULL) AND (
            (event.position > :first_foreign AND event.transaction_id < pg_snapshot_xmax(pg_current_snapshot()))
            OR (
                NOT pg_visible_in_snapshot(event.transaction_id, consumer.seen) AND (
                    consumer.reading IS NULL OR event.position > consumer.position
                    OR NOT pg_visible_in_snapshot(event.transaction_id, consumer.reading)
                )
            )
        )
        ORDER BY name
    )) AS text)
"""  # noqa: S608

GROUPS = f"SELECT DISTINCT {_UNREAD} AS unread FROM events AS event ORDER BY 1"  # noqa: S608

# Ids below the first ordinary ones of any cluster, so they belong to transactions that have ended everywhere.
RENUMBER = f"""
    UPDATE {{partition}} AS event SET transaction_id = CAST(
        CAST(:first + coalesce(array_position(CAST(:groups AS text[]), {_UNREAD}), 0) AS text) AS xid8
    )
"""  # noqa: S608

NOW = """
    SELECT CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS following,
        ARRAY(SELECT CAST(CAST(one AS text) AS bigint) FROM pg_snapshot_xip(pg_current_snapshot()) AS one) AS running,
        CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own
"""

PLACED = f"""
    SELECT name FROM log_consumers WHERE seen::text <> '{NOTHING_SEEN}' OR reading IS NOT NULL ORDER BY name
"""  # noqa: S608

PLACE = """
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot), reading = NULL, position = 0,
        until = NULL, lease_owner = NULL, lease_until = NULL
    WHERE name = :name
"""

# What another database has stored are ids of the other cluster: it has to start over.
RESTART_SINKS = """
    UPDATE log_sinks SET series = gen_random_uuid(), dropped_transaction_id = NULL, dropped_position = NULL
"""

NOTE = """
    INSERT INTO log_origin (id, system_identifier) VALUES (1, :identifier)
    ON CONFLICT (id) DO UPDATE SET system_identifier = excluded.system_identifier, noted_at = now()
"""
