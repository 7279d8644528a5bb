"""All SQL about rows that a sweep could not end."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import col, func, select

from services.sql import SqlAccess, Statement
from services.sweeps.models import SweepFailure


@dataclass(frozen=True, slots=True)
class Known:
    """A row that failed before: how often, and whether it is left out until its next attempt."""

    attempts: int
    rests: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that has failed now. `delay` is in seconds."""

    subject: str
    error: str
    delay: float


class SweepRepository(SqlAccess):
    """The failures that sweeps remember between runs."""

    async def begin(self, sweep: str, seconds: float) -> bool:
        """Until the transaction ends, wait for locks no longer than `seconds`, and read tables by index.

        Returns whether there is something to `forget`.
        """
        (row,) = await self.sql.fetch(_BEGIN, sweep=sweep, milliseconds=str(int(seconds * 1000)))
        return bool(row["stale"])

    async def known(self, sweep: str, subjects: Sequence[str]) -> Mapping[str, Known]:
        """Those of the subjects that have failed before."""
        rows = await self.sql.fetch(_KNOWN, sweep=sweep, subjects=list(subjects))
        return {row["subject"]: Known(row["attempts"], row["rests"]) for row in rows}

    async def keep(self, sweep: str, failed: Sequence[Failed]) -> None:
        """Count an attempt for each, and leave it out until its delay has passed."""
        await self.sql.run(
            _KEEP,
            sweep=sweep,
            subjects=[one.subject for one in failed],
            errors=[one.error for one in failed],
            delays=[one.delay for one in failed],
        )

    async def remove(self, sweep: str, subjects: Collection[str]) -> None:
        """Remove rows that have ended."""
        await self.sql.run(_REMOVE, sweep=sweep, subjects=list(subjects))

    async def forget(self, sweep: str) -> int:
        """Remove rows that no run has found again at their next attempt: something else has ended them."""
        return await self.sql.run(_FORGET, sweep=sweep)

    async def count(self) -> int:
        """The number of rows that sweeps leave out, of all sweeps together, counted up to `MOST_COUNTED`."""
        some = select(SweepFailure.sweep).limit(MOST_COUNTED).subquery()
        return (await self.session.exec(select(func.count()).select_from(some))).one()

    async def newest(self, limit: int) -> Sequence[SweepFailure]:
        """The rows that failed most recently."""
        statement = select(SweepFailure).order_by(
            col(SweepFailure.last_at).desc(), col(SweepFailure.sweep), col(SweepFailure.subject)
        )
        return (await self.session.exec(statement.limit(limit))).all()


MOST_COUNTED = 10_000

BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC), UUID(int=0)
"""Where a sweep by time and id begins."""

# A slice knows the ids of its rows. Without statistics, or with those of an empty table, the planner would prefer to
# read whole tables.
_STALE = "sweep = :sweep AND next_at < now() - interval '10 minutes'"
_BEGIN = Statement(f"""
    SELECT set_config('lock_timeout', :milliseconds, true), set_config('enable_seqscan', 'off', true),
        EXISTS (SELECT FROM sweep_failures WHERE {_STALE}) AS stale
""")  # noqa: S608

_KNOWN = Statement("""
    SELECT subject, attempts, next_at > clock_timestamp() AS rests FROM sweep_failures
    WHERE sweep = :sweep AND subject = ANY(CAST(:subjects AS text[]))
""")

# In the order of the subjects: if two sweeps fail on the same rows at the same time, one waits instead of a deadlock.
# The clock is read once: two readings differ by a microsecond now and then.
_KEEP = Statement("""
    INSERT INTO sweep_failures AS failure (sweep, subject, attempts, error, first_at, last_at, next_at)
    SELECT :sweep, subject, 1, error, read.at, read.at, read.at + make_interval(secs => delay)
    FROM unnest(CAST(:subjects AS text[]), CAST(:errors AS text[]), CAST(:delays AS double precision[]))
        AS new(subject, error, delay), (SELECT clock_timestamp() AS at) AS read
    ORDER BY subject
    ON CONFLICT (sweep, subject) DO UPDATE SET attempts = failure.attempts + 1, error = excluded.error,
        last_at = excluded.last_at, next_at = excluded.next_at
""")

_REMOVE = Statement("""
    DELETE FROM sweep_failures WHERE sweep = :sweep AND subject = ANY(CAST(:subjects AS text[]))
""")

_FORGET = Statement(f"DELETE FROM sweep_failures WHERE {_STALE}")  # noqa: S608
