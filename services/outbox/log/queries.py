"""The statements of the log's readers: consumers, what is new to a consumer, how far behind each one is."""

from services.sql import Statement

CREATE = Statement("""
    INSERT INTO log_consumers (name, seen) VALUES (:name, CAST(CAST(:seen AS text) AS pg_snapshot))
    ON CONFLICT DO NOTHING
""")

RESET = Statement("""
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot), reading = NULL, position = 0,
        until = NULL, updated_at = clock_timestamp(), failed_in_a_row = 0, error = NULL, retry_at = NULL,
        lease_owner = NULL, lease_until = NULL
    WHERE name = :name AND EXISTS (SELECT FROM log_sinks WHERE log_sinks.name = :name) = :is_sink
""")

DELETE = Statement("DELETE FROM log_consumers WHERE name = :name")

EXISTS = Statement("SELECT FROM log_consumers WHERE name = :name")

_MINE = "lease_owner = :owner AND lease_token = :token"

_PLACE = "CAST(seen AS text) AS seen, CAST(reading AS text) AS reading, position, until"

# The ORDER BY keeps the planner on the index. New to a snapshot are the transactions that were running then and those
# that began later.
_NEWS = """(
    {reading} IS NOT NULL
    OR (
        SELECT transaction_id FROM events WHERE transaction_id >= pg_snapshot_xmax({seen})
        ORDER BY transaction_id DESC LIMIT 1
    ) IS NOT NULL
    OR EXISTS (SELECT FROM events WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip({seen}))))
)"""
_NEWS_OF_ROW = _NEWS.format(seen="seen", reading="reading")

# Finds no row if the consumer has nothing new to read. An idle look writes nothing.
LOCK = Statement(f"""
    SELECT {_PLACE} FROM log_consumers WHERE name = :name AND {_NEWS_OF_ROW} FOR NO KEY UPDATE SKIP LOCKED
""")  # noqa: S608

# Finds no row if the lease is lost. The row is not locked: if the worker is suspended in the middle of a batch, another
# one can take the lease.
LOOK = Statement(f"SELECT {_PLACE}, {_NEWS_OF_ROW} AS news FROM log_consumers WHERE name = :name AND {_MINE}")  # noqa: S608

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

PAGE = """
    SELECT position, id, type, version, aggregate, payload, occurred_at, request_id, traceparent, actor
    FROM events
    WHERE position > :after AND position <= :until
    AND NOT pg_visible_in_snapshot(transaction_id, CAST(CAST(:seen AS text) AS pg_snapshot))
    AND pg_visible_in_snapshot(transaction_id, CAST(CAST(:reading AS text) AS pg_snapshot))
    AND (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
    ORDER BY position LIMIT :limit
"""
"""A page of events. Consumers that add up in SQL put it into a statement of their own."""

READ_PAGE = Statement(PAGE)

_ADVANCE = """
    UPDATE log_consumers SET seen = CAST(CAST(:seen AS text) AS pg_snapshot),
        reading = CAST(CAST(:reading AS text) AS pg_snapshot), position = :position, until = :until,
        updated_at = clock_timestamp(),
"""

# For a reader that is not a worker: a worker that runs the consumer loses its lease.
ADVANCE = Statement(f"""
    {_ADVANCE} lease_owner = NULL, lease_until = NULL WHERE name = :name
""")

# The name of a WAL file begins with the timeline. It fails on a standby.
LOOK_FROM_MEMORY = Statement(f"""
    SELECT {_NEWS.format(seen="CAST(CAST(:seen AS text) AS pg_snapshot)", reading="NULL")} AS news,
        left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
""")

# The last events of those that are visible in the snapshot, however rare they are among the last `looked` of the log.
TAIL = Statement("""
    SELECT * FROM (
        SELECT position, id, type, version, aggregate, payload, occurred_at, request_id, traceparent, actor
        FROM events WHERE pg_visible_in_snapshot(transaction_id, CAST(CAST(:seen AS text) AS pg_snapshot))
        ORDER BY position DESC LIMIT :looked
    ) AS recent
    WHERE (CAST(:types AS text[]) IS NULL OR type = ANY(CAST(:types AS text[])))
    AND (CAST(:aggregate AS text) IS NULL OR aggregate = :aggregate)
    ORDER BY position DESC LIMIT :limit
""")

_UNTIL = "clock_timestamp() + make_interval(secs => CAST(:seconds AS double precision))"

OWN = Statement("SELECT CAST(pg_current_xact_id() AS text) AS own")

# The row's lock decides: from here to the commit no one else can get the lease. `own` is the transaction that read. If
# the update waits for the lock, it compares the row as it is afterwards: the worker's own commit, whose answer was lost
# or came too late, may have moved the consumer meanwhile.
ADVANCE_LEASED = Statement(f"""
    {_ADVANCE} lease_until = {_UNTIL}, failed_in_a_row = 0, error = NULL, retry_at = NULL
    WHERE name = :name AND {_MINE} AND pg_current_xact_id() = CAST(CAST(:own AS text) AS xid8)
    AND ARRAY[CAST(seen AS text), CAST(reading AS text), CAST(log_consumers.position AS text)] = CAST(:stored AS text[])
""")

# A time that is too far in the future was written before the database's clock was set back.
CLAIM = Statement(f"""
    UPDATE log_consumers SET lease_token = lease_token + 1, lease_owner = :owner, lease_until = {_UNTIL}
    WHERE name = (
        SELECT name FROM log_consumers WHERE name = :name AND paused_at IS NULL
        AND (retry_at IS NULL OR retry_at <= clock_timestamp() OR retry_at > clock_timestamp() + interval '1 hour')
        AND (
            lease_until IS NULL OR lease_until <= clock_timestamp() OR lease_until > {_UNTIL} + interval '1 hour'
            OR lease_owner = :owner
        )
        FOR NO KEY UPDATE SKIP LOCKED
    )
    RETURNING lease_token AS token
""")  # noqa: S608

_SEEN = "CAST(CAST(:seen AS text) AS pg_snapshot)"
_READING = "CAST(CAST(:reading AS text) AS pg_snapshot)"

LOOK_AT_SINK = Statement(f"""
    SELECT sink.series, sink.reads, sink.last_read, sink.stored, consumer.failed_in_a_row > 0 AS failed,
        {_NEWS.format(seen=_SEEN, reading=_READING)} AS news
    FROM log_sinks AS sink JOIN log_consumers AS consumer USING (name)
    WHERE name = :name AND {_MINE}
""")  # noqa: S608

ADD_SINK = Statement(
    "INSERT INTO log_sinks (name) SELECT name FROM log_consumers WHERE name = :name ON CONFLICT DO NOTHING"
)

# The consumer follows the place that the sink has committed. `whole` is whether every dropped event comes before it.
# If a transaction waits here for one that drops a month, it sees afterwards what was dropped.
HAND_OUT = Statement(f"""
    WITH moved AS (
        UPDATE log_consumers SET seen = {_SEEN}, reading = {_READING}, position = :position, until = :until,
            updated_at = clock_timestamp(), lease_until = {_UNTIL},
            failed_in_a_row = CASE WHEN :clear THEN 0 ELSE failed_in_a_row END,
            error = CASE WHEN :clear THEN NULL ELSE error END,
            retry_at = CASE WHEN :clear THEN NULL ELSE retry_at END
        WHERE name = :name AND {_MINE}
        RETURNING name
    )
    UPDATE log_sinks SET stored = :number, last_read = coalesce(CAST(:read_id AS uuid), last_read),
        reads = reads + CASE WHEN CAST(:read_id AS uuid) IS NULL THEN 0 ELSE 1 END
    FROM moved
    WHERE log_sinks.name = moved.name AND series = :series AND reads = :reads AND stored = :stored
    RETURNING reads, dropped_transaction_id IS NULL
        OR dropped_transaction_id < pg_snapshot_xmin({_SEEN})
        OR (dropped_transaction_id < pg_snapshot_xmin({_READING}) AND dropped_position <= :position) IS TRUE AS whole
""")  # noqa: S608

RESTART_SINK = Statement("""
    UPDATE log_sinks SET series = gen_random_uuid(), reads = 0, last_read = NULL, stored = 0,
        dropped_transaction_id = NULL, dropped_position = NULL
    WHERE name = :name RETURNING series
""")

EXTENT = Statement("""
    SELECT (SELECT id FROM events ORDER BY id LIMIT 1) AS oldest, (SELECT min(position) FROM events) AS first,
        (SELECT max(position) FROM events) AS last
""")

WRITTEN = Statement("SELECT count(*) AS events FROM (SELECT FROM events WHERE id >= :first LIMIT :most) AS recent")

HOLDS = Statement(f"SELECT FROM log_consumers WHERE name = :name AND {_MINE}")

RENEW = Statement(f"UPDATE log_consumers SET lease_until = {_UNTIL} WHERE name = :name AND {_MINE}")  # noqa: S608

RELEASE = Statement(f"""
    UPDATE log_consumers SET lease_owner = NULL, lease_until = NULL WHERE name = :name AND {_MINE}
""")  # noqa: S608

FAIL = Statement(f"""
    UPDATE log_consumers SET lease_owner = NULL, lease_until = NULL, failed_in_a_row = failed_in_a_row + 1,
        error = :error,
        retry_at = clock_timestamp() + make_interval(secs => least(300, power(2, least(failed_in_a_row, 10))))
    WHERE name = :name AND {_MINE}
""")  # noqa: S608

PAUSE = Statement("""
    UPDATE log_consumers SET paused_at = clock_timestamp(), paused_by = :actor, lease_owner = NULL, lease_until = NULL
    WHERE name = :name AND lease_token > 0
""")

RESUME = Statement("UPDATE log_consumers SET paused_at = NULL, paused_by = NULL, retry_at = NULL WHERE name = :name")

OLDEST = Statement("SELECT id FROM events ORDER BY id LIMIT 1")

# Unread is what is not visible in `reading`, which has no place yet, and of what is being read the rest, by position:
# found by its transactions, it would come after everything that has been read.
# Planned without sorting: with outdated statistics, the planner would sort all that a consumer has still to read.
WITHOUT_SORTING = Statement("SET LOCAL enable_sort = off")
SORTING = Statement("SET LOCAL enable_sort = on")
LIST = Statement("""
    SELECT name, updated_at, least(unread.events, :most) AS events,
        coalesce(extract(epoch FROM clock_timestamp() - unread.oldest), 0)::float AS seconds,
        CASE
            WHEN lease_token = 0 THEN 'manual'
            WHEN paused_at IS NOT NULL THEN 'paused'
            WHEN failed_in_a_row > 0 THEN 'failing'
            WHEN lease_until > clock_timestamp() THEN 'running'
            ELSE 'waiting'
        END AS state,
        workers.host, workers.pid, failed_in_a_row, error, retry_at, paused_at, paused_by,
        log_consumers.position, until
    FROM log_consumers LEFT JOIN workers ON workers.id = lease_owner CROSS JOIN LATERAL (
        SELECT count(*) AS events, min(occurred_at) AS oldest FROM (
            (
                SELECT occurred_at FROM events
                WHERE transaction_id >= pg_snapshot_xmax(coalesce(reading, seen))
                ORDER BY transaction_id LIMIT :most
            )
            UNION ALL
            SELECT occurred_at FROM events
            WHERE transaction_id = ANY(ARRAY(SELECT pg_snapshot_xip(coalesce(reading, seen))))
            UNION ALL (
                SELECT occurred_at FROM events
                WHERE events.position > log_consumers.position AND events.position <= until
                AND NOT pg_visible_in_snapshot(transaction_id, seen) AND pg_visible_in_snapshot(transaction_id, reading)
                ORDER BY events.position LIMIT :most
            )
        ) AS unread
    ) AS unread
    ORDER BY name
""")
