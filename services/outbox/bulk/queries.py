"""The statements with which workers claim a bulk action and move it forward."""

from services.sql import Statement

# With outdated statistics, the planner would read and sort the whole table for each chunk.
PLAN = Statement("""
    SELECT set_config(name, :value, true)
    FROM unnest('{enable_seqscan,enable_bitmapscan,enable_sort}'::text[]) AS name
""")

LAST_LETTER = Statement("SELECT coalesce(max(position), 0) AS position FROM dead_letters")

LAST_WAITING = Statement("""
    SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_position_seq) AS position, coalesce((
        SELECT aggregate FROM outbox WHERE available_at IS NOT NULL ORDER BY aggregate DESC, position DESC LIMIT 1
    ), '') AS aggregate
""")

# The one that has waited longest for its next chunk. While another worker's chunk runs, its row is locked. The chunk
# then waits for no other lock for longer than two seconds.
TAKE = Statement("""
    SELECT id, action, CAST(filter AS text) AS filter, reason, actor, acting, user_id, created_at, tries,
        after_position, after_aggregate, last_position, last_aggregate,
        set_config('lock_timeout', '2s', true) AS patience
    FROM bulk_actions
    WHERE state = ANY ('{waiting,running}'::text[]) AND action = ANY(CAST(:kinds AS text[]))
    AND (retry_at IS NULL OR retry_at <= statement_timestamp())
    ORDER BY coalesce(touched_at, created_at), id LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
""")

ADVANCE = Statement("""
    UPDATE bulk_actions SET
        state = CASE WHEN :ended THEN 'finished' ELSE 'running' END,
        examined = examined + :examined, done = done + :done, failed = failed + :failed, skipped = skipped + :skipped,
        error = coalesce(:error, error), tries = 0, retry_at = NULL,
        started_at = coalesce(started_at, statement_timestamp()), touched_at = clock_timestamp(),
        ended_at = CASE WHEN :ended THEN clock_timestamp() END,
        after_position = :position, after_aggregate = :aggregate, worker_id = :worker_id
    WHERE id = :id
    RETURNING done, failed, skipped
""")

PUT_OFF = Statement("""
    UPDATE bulk_actions SET tries = tries + 1, error = :error, touched_at = clock_timestamp(), worker_id = :worker_id,
        retry_at = clock_timestamp() + make_interval(secs => CAST(:delay AS double precision))
    WHERE id = :id AND state = ANY ('{waiting,running}'::text[])
""")
