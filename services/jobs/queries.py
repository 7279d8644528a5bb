"""The SQL of scheduled jobs."""

from services.outbox.engine.queries import LIVE
from services.sql import Statement

NOW = Statement("SELECT statement_timestamp() AS now")

# If the clock has been set back, times that were written before are too far in the future.
ANNOUNCE = Statement("""
    INSERT INTO jobs AS job (name, schedule, due_at) VALUES (:name, :schedule, :due_at)
    ON CONFLICT (name) DO UPDATE SET
        schedule = excluded.schedule,
        due_at = least(job.due_at, excluded.due_at),
        lease_until = CASE WHEN job.lease_until IS NOT NULL THEN least(
            job.lease_until, statement_timestamp() + make_interval(secs => CAST(:lease AS double precision))
        ) END
""")

LOOK = Statement("""
    SELECT name, schedule, statement_timestamp() AS now, due_at, requested_at IS NOT NULL AS requested,
        paused_at IS NOT NULL AS paused, lease_until
    FROM jobs
""")

# A lease that has expired means that the worker was lost with its run, which counts as failed.
CLAIM = Statement("""
    WITH taken AS (
        SELECT name, lease_owner IS NOT NULL AS lost FROM jobs
        WHERE name = :name
        AND (requested_at IS NOT NULL OR (paused_at IS NULL AND due_at <= statement_timestamp()))
        AND (lease_until IS NULL OR lease_until <= statement_timestamp())
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET
        lease_owner = :owner,
        lease_until = statement_timestamp() + make_interval(secs => CAST(:lease AS double precision)),
        started_at = statement_timestamp(),
        due_at = least(due_at, statement_timestamp()),
        requested_at = NULL,
        requested_by = NULL,
        runs = runs + CAST(lost AS integer),
        failures = failures + CAST(lost AS integer),
        failed_in_a_row = failed_in_a_row + CAST(lost AS integer),
        finished_at = CASE WHEN lost THEN statement_timestamp() ELSE finished_at END,
        ok = ok AND NOT lost,
        error = CASE WHEN lost THEN 'the worker that ran it was lost' ELSE error END,
        seconds = CASE WHEN lost THEN NULL ELSE seconds END
    FROM taken WHERE jobs.name = taken.name
    RETURNING jobs.failed_in_a_row AS failed, statement_timestamp() AS at
""")

RENEW = Statement("""
    UPDATE jobs SET lease_until = statement_timestamp() + make_interval(secs => CAST(:lease AS double precision))
    WHERE name = :name AND lease_owner = :owner
""")

RELEASE = Statement(
    "UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE name = :name AND lease_owner = :owner"
)

FINISH = Statement("""
    UPDATE jobs SET
        lease_owner = NULL,
        lease_until = NULL,
        due_at = :due_at,
        finished_at = statement_timestamp(),
        ok = CAST(:error AS text) IS NULL,
        seconds = :seconds,
        error = :error,
        runs = runs + 1,
        failures = failures + CAST(CAST(:error AS text) IS NOT NULL AS integer),
        failed_in_a_row = CASE WHEN CAST(:error AS text) IS NULL THEN 0 ELSE failed_in_a_row + 1 END
    WHERE name = :name AND lease_owner = :owner
""")

REQUEST = Statement("""
    UPDATE jobs SET requested_at = coalesce(requested_at, statement_timestamp()), requested_by = :actor
    WHERE name = :name
""")

PAUSE = Statement("""
    UPDATE jobs SET paused_at = statement_timestamp(), paused_by = :actor, paused_reason = :reason WHERE name = :name
""")

RESUME = Statement("UPDATE jobs SET paused_at = NULL, paused_by = NULL, paused_reason = NULL WHERE name = :name")

LIST = Statement(f"""
    WITH alive AS (
        SELECT report FROM workers WHERE {LIVE}
    )
    SELECT jobs.*, workers.host, workers.pid, statement_timestamp() AS now,
        coalesce(jobs.lease_until > statement_timestamp(), false) AS running,
        CAST(extract(epoch FROM statement_timestamp() - greatest(due_at, lease_until)) AS double precision)
            AS late_seconds,
        EXISTS (SELECT FROM alive WHERE report -> 'schedules' ? jobs.name) OR NOT EXISTS (SELECT FROM alive) AS known
    FROM jobs LEFT JOIN workers ON workers.id = jobs.lease_owner
    ORDER BY jobs.name
""")  # noqa: S608
