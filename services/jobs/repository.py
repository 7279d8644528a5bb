"""All SQL of the scheduled jobs. All times in it are the database's."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.jobs.schemas import Ended, Seen
from services.sql import Row, SqlAccess, Statement

_NOW = Statement("SELECT statement_timestamp() AS now")

# When the clock has been set back, times that were written before are too far ahead.
_ANNOUNCE = Statement("""
    INSERT INTO jobs AS job (name, schedule, due_at) VALUES (:name, :schedule, :due_at)
    ON CONFLICT (name) DO UPDATE SET
        schedule = excluded.schedule,
        due_at = least(job.due_at, excluded.due_at),
        lease_until = CASE WHEN job.lease_until IS NOT NULL THEN least(
            job.lease_until, statement_timestamp() + make_interval(secs => CAST(:lease AS double precision))
        ) END
""")

_LOOK = Statement("""
    SELECT name, schedule, statement_timestamp() AS now, due_at, requested_at IS NOT NULL AS requested,
        paused_at IS NOT NULL AS paused, lease_until
    FROM jobs
""")

# A lease that has expired means that the worker was lost with its run, which counts as failed.
_CLAIM = Statement("""
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
    RETURNING jobs.failed_in_a_row
""")

_RENEW = Statement("""
    UPDATE jobs SET lease_until = statement_timestamp() + make_interval(secs => CAST(:lease AS double precision))
    WHERE name = :name AND lease_owner = :owner
""")

_RELEASE = Statement(
    "UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE name = :name AND lease_owner = :owner"
)

_FINISH = Statement("""
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

_REQUEST = Statement("""
    UPDATE jobs SET requested_at = coalesce(requested_at, statement_timestamp()), requested_by = :actor
    WHERE name = :name
""")
_PAUSE = Statement("""
    UPDATE jobs SET paused_at = statement_timestamp(), paused_by = :actor, paused_reason = :reason WHERE name = :name
""")
_RESUME = Statement("UPDATE jobs SET paused_at = NULL, paused_by = NULL, paused_reason = NULL WHERE name = :name")

_LIST = Statement("""
    WITH alive AS (
        SELECT report FROM workers WHERE beat_at > statement_timestamp() - make_interval(secs => 20)
    )
    SELECT jobs.*, workers.host, workers.pid, statement_timestamp() AS now,
        coalesce(jobs.lease_until > statement_timestamp(), false) AS running,
        CAST(extract(epoch FROM statement_timestamp() - greatest(due_at, lease_until)) AS double precision)
            AS late_seconds,
        EXISTS (SELECT FROM alive WHERE report -> 'schedules' ? jobs.name) OR NOT EXISTS (SELECT FROM alive) AS known
    FROM jobs LEFT JOIN workers ON workers.id = jobs.lease_owner
    ORDER BY jobs.name
""")


class JobRepository(SqlAccess):
    """The rows of scheduled jobs: announced by workers, claimed, and controlled by operators."""

    async def now(self) -> datetime:
        """The database's clock."""
        (row,) = await self.sql.fetch(_NOW)
        found: datetime = row["now"]
        return found

    async def announce(self, name: str, schedule: str, due_at: datetime, lease: float) -> None:
        """Create a job's row, due at `due_at`. An existing row keeps its time unless that is later.

        Its lease, if any, ends in `lease` seconds at the latest.
        """
        await self.sql.run(_ANNOUNCE, name=name, schedule=schedule, due_at=due_at, lease=lease)

    async def look(self) -> list[Seen]:
        """All rows, including those that are unknown to this worker."""
        return [Seen(**row) for row in await self.sql.fetch(_LOOK)]

    async def claim(self, name: str, owner: UUID, lease: float) -> int | None:
        """Take a due job for `lease` seconds; returns how many of its runs have failed since the last success.

        None if it is not due, is leased, or is being claimed by another worker.
        """
        rows = await self.sql.fetch(_CLAIM, name=name, owner=owner, lease=lease)
        return next((int(row["failed_in_a_row"]) for row in rows), None)

    async def renew(self, name: str, owner: UUID, lease: float) -> bool:
        """Keep the job for `lease` seconds from now; False if another worker has it."""
        return await self.sql.run(_RENEW, name=name, owner=owner, lease=lease) == 1

    async def release(self, name: str, owner: UUID) -> None:
        """Give the job back as it was; it is still due."""
        await self.sql.run(_RELEASE, name=name, owner=owner)

    async def finish(self, name: str, owner: UUID, ended: Ended, due_at: datetime) -> bool:
        """Write how the run ended and when the next one is due; False if another worker has the job."""
        return (
            await self.sql.run(_FINISH, name=name, owner=owner, due_at=due_at, seconds=ended.seconds, error=ended.error)
            == 1
        )

    async def request(self, name: str, actor: str) -> bool:
        """Have it run as soon as a worker is free; False if there is no such job."""
        return await self.sql.run(_REQUEST, name=name, actor=actor) == 1

    async def pause(self, name: str, actor: str, reason: str) -> bool:
        """Keep workers from claiming it on its schedule; False if there is no such job."""
        return await self.sql.run(_PAUSE, name=name, actor=actor, reason=reason) == 1

    async def resume(self, name: str) -> bool:
        """Let workers claim it again; False if there is no such job."""
        return await self.sql.run(_RESUME, name=name) == 1

    async def states(self) -> Sequence[Row]:
        """Every job, who runs it, and whether a live worker knows it (assumed while none is alive)."""
        return await self.sql.fetch(_LIST)
