"""The statements of the log's readers: consumers, what is new to a consumer, how far behind each one is."""

from services.sql import Statement

CREATE = Statement("""
    INSERT INTO log_consumers (name, seen) VALUES (:name, CAST(CAST(:seen AS text) AS pg_snapshot))
    ON CONFLICT DO NOTHING
""")

RESET = Statement("""
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot), reading = NULL, position = 0,
        until = NULL, updated_at = clock_timestamp()
    WHERE name = :name
""")

DELETE = Statement("DELETE FROM log_consumers WHERE name = :name")

EXISTS = Statement("SELECT FROM log_consumers WHERE name = :name")

# A consumer with nothing new to read is not locked: an idle look writes nothing. The ORDER BY keeps the planner on the
# index. New to a snapshot are the transactions that were running then and those that began later.
LOCK = Statement("""
    SELECT CAST(seen AS text) AS seen, CAST(reading AS text) AS reading, position, until FROM log_consumers
    WHERE name = :name AND (
        reading IS NOT NULL
        OR (
            SELECT transaction_id FROM events WHERE transaction_id >= pg_snapshot_xmax(seen)
            ORDER BY transaction_id DESC LIMIT 1
        ) IS NOT NULL
        OR EXISTS (SELECT FROM events WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip(seen))))
    )
    FOR NO KEY UPDATE SKIP LOCKED
""")

# `first` is where to start: at the beginning of the log if the consumer has seen nothing, otherwise at the lowest new
# position. Up to 99 new events are found by the index, whatever the statistics of the log; for more, the planner may
# choose. `position + 0` keeps it from finding the lowest one along the index of positions, past everything seen before.
OPEN = Statement("""
    WITH place AS MATERIALIZED (
        SELECT pg_snapshot_xmax(CAST(CAST(:seen AS text) AS pg_snapshot)) AS following,
            ARRAY(SELECT pg_snapshot_xip(CAST(CAST(:seen AS text) AS pg_snapshot))) AS running
    ), fresh AS MATERIALIZED (
        SELECT position FROM events WHERE transaction_id >= (SELECT following FROM place)
        ORDER BY transaction_id LIMIT 100
    )
    SELECT CAST(pg_current_snapshot() AS text) AS snapshot, CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own,
        CASE
            WHEN CAST(:seen AS text) = :nothing THEN (SELECT min(position) FROM events)
            ELSE least(
                (
                    SELECT min(position + 0) FROM events
                    WHERE transaction_id = ANY(CAST((SELECT running FROM place) AS xid8[]))
                ),
                CASE
                    WHEN (SELECT count(*) FROM fresh) < 100 THEN (SELECT min(position) FROM fresh)
                    ELSE (
                        SELECT min(position + 0) FROM events WHERE transaction_id >= (SELECT following FROM place)
                    )
                END
            )
        END AS first,
        (SELECT max(position) FROM events) AS last
""")

PAGE = Statement("""
    SELECT position, id, type, version, aggregate, payload, occurred_at, request_id, traceparent FROM events
    WHERE position > :after AND position <= :until
    AND NOT pg_visible_in_snapshot(transaction_id, CAST(CAST(:seen AS text) AS pg_snapshot))
    AND pg_visible_in_snapshot(transaction_id, CAST(CAST(:reading AS text) AS pg_snapshot))
    AND (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
    ORDER BY position LIMIT :limit
""")

ADVANCE = Statement("""
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot),
        reading = CAST(CAST(:reading AS text) AS pg_snapshot), position = :position, until = :until,
        updated_at = clock_timestamp()
    WHERE name = :name
""")

LIST = Statement("""
    SELECT name, updated_at, least(unread.events, :most) AS events,
        coalesce(extract(epoch FROM clock_timestamp() - unread.oldest), 0)::float AS seconds
    FROM log_consumers CROSS JOIN LATERAL (
        SELECT count(*) AS events, min(occurred_at) AS oldest FROM (
            (
                SELECT occurred_at FROM events
                WHERE transaction_id >= pg_snapshot_xmax(seen) AND (
                    reading IS NULL OR events.position > log_consumers.position
                    OR NOT pg_visible_in_snapshot(transaction_id, reading)
                )
                ORDER BY transaction_id LIMIT :most
            )
            UNION ALL
            SELECT occurred_at FROM events
            WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip(seen))) AND (
                reading IS NULL OR events.position > log_consumers.position
                OR NOT pg_visible_in_snapshot(transaction_id, reading)
            )
        ) AS unread
    ) AS unread
    ORDER BY name
""")
