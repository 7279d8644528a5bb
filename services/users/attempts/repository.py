"""All SQL about password attempts."""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from services.sql import SqlAccess, Statement

FORGOTTEN = timedelta(hours=1)
"""How long after the latest failure the count starts again. No pause is longer."""


class Forgotten(NamedTuple):
    """An account or address that has not failed for a while."""

    at: float
    subject_hash: bytes

    @property
    def subject(self) -> str:
        return self.subject_hash.hex()


class AttemptRepository(SqlAccess):
    """Counts of attempts that may have failed."""

    async def take(self, subject: bytes, free: int, first: float, longest: float) -> float | None:
        """Count an attempt as failed in advance. Returns None, or the seconds to wait if the subject is locked.

        It pauses from the `free`-th failure on: for `first` seconds, then for twice as long each time, up to `longest`.
        Simultaneous attempts are counted one after another, since the row is locked until the transaction ends.
        """
        if await self.sql.run(_TAKE, subject=subject, free=free, first=first, longest=longest):
            return None
        (row,) = await self.sql.fetch(_WAIT, subject=subject)
        return float(row["seconds"])

    async def clear(self, subject: bytes) -> None:
        """Forget the subject's failures."""
        await self.sql.run(_CLEAR, subject=subject)

    async def give_back(self, subject: bytes) -> None:
        """Uncount one attempt, lift the pause that it caused, and count the time from the one before it again.

        Of simultaneous attempts, the first may count as the latest failure, even if it is given back as well.
        """
        await self.sql.run(_GIVE_BACK, subject=subject)

    async def is_known(self, email: str, address: str) -> bool:
        """Whether a session of this user was last used from this IP address."""
        (row,) = await self.sql.fetch(_IS_KNOWN, email=email, address=address)
        return bool(row["known"])

    async def forgotten(self, after: Forgotten | None, limit: int) -> list[Forgotten]:
        """Up to `limit` subjects that have not failed for a while, after `after` in the order of their last failure."""
        at, last = after or (0.0, b"")
        rows = await self.sql.fetch(_FORGOTTEN, at=at, after=last, limit=limit)
        return [Forgotten(row["at"], row["subject"]) for row in rows]

    async def delete_forgotten(self, subjects: Sequence[bytes]) -> list[bytes]:
        """Delete those of the subjects that have still not failed for a while; returns them."""
        rows = await self.sql.fetch(_DELETE_FORGOTTEN, subjects=list(subjects))
        return [row["subject"] for row in rows]


_IS_FORGOTTEN = f"known.updated_at < now() - interval '{FORGOTTEN.total_seconds():.0f} seconds'"
_NUMBER = f"CASE WHEN {_IS_FORGOTTEN} THEN 1 ELSE known.failures + 1 END"
# Without a pause, a time long ago and not this transaction's: a simultaneous one may have begun before it.
_UNTIL = """CASE WHEN {number} < :free THEN to_timestamp(0) ELSE
    now() + make_interval(secs => least(
        CAST(:longest AS float8), CAST(:first AS float8) * power(2, least({number} - :free, 30))
    )) END"""

_TAKE = Statement(f"""
    INSERT INTO failed_attempts AS known (subject, failures, locked_until, updated_at)
    VALUES (:subject, 1, {_UNTIL.format(number="1")}, now())
    ON CONFLICT (subject) DO UPDATE SET failures = {_NUMBER}, updated_at = now(), failed_before = known.updated_at,
        locked_until = {_UNTIL.format(number=f"({_NUMBER})")}
    WHERE known.locked_until <= now()
""")  # noqa: S608

_WAIT = Statement("""
    SELECT greatest(extract(epoch FROM locked_until - now()), 0)::float8 AS seconds FROM failed_attempts
    WHERE subject = :subject
""")

_CLEAR = Statement("DELETE FROM failed_attempts WHERE subject = :subject")

_GIVE_BACK = Statement("""
    UPDATE failed_attempts SET failures = greatest(failures - 1, 0), locked_until = to_timestamp(0),
        updated_at = failed_before
    WHERE subject = :subject
""")

_IS_KNOWN = Statement("""
    SELECT EXISTS (
        SELECT FROM users JOIN sessions ON sessions.user_id = users.id
        WHERE lower(users.email) = lower(:email) AND sessions.address = :address
    ) AS known
""")

_FORGOTTEN = Statement(f"""
    SELECT extract(epoch FROM updated_at)::float8 AS at, subject FROM failed_attempts AS known
    WHERE {_IS_FORGOTTEN} AND (updated_at, subject) > (to_timestamp(:at), :after)
    ORDER BY updated_at, subject LIMIT :limit
""")  # noqa: S608

_DELETE_FORGOTTEN = Statement(f"""
    DELETE FROM failed_attempts WHERE subject = ANY(ARRAY(
        SELECT subject FROM failed_attempts AS known WHERE subject = ANY(CAST(:subjects AS bytea[]))
        AND {_IS_FORGOTTEN} FOR UPDATE SKIP LOCKED
    )) RETURNING subject
""")  # noqa: S608
