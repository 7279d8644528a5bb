"""All SQL about sessions and refresh tokens."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from services.sql import Row, SqlAccess, Statement
from services.users.models import Presented
from services.users.sessions.models import Device, Ended

RETRY = timedelta(seconds=10)
"""How long after its first use a refresh token may be shown again by a client that has not got the reply."""


class ExpiredSession(NamedTuple):
    """A session that has been over for longer than the retention."""

    at: float
    session_id: UUID

    @property
    def subject(self) -> str:
        return str(self.session_id)


class SessionRepository(SqlAccess):
    """Sessions, and the refresh tokens that extend them."""

    async def begin(
        self,
        session_id: UUID,
        user_id: int,
        verified: str,
        totp_since: datetime | None,
        idle: timedelta,
        device: Device,
        token: bytes,
    ) -> bool:
        """Begin a session, unless the user may not sign in, or has another password or second factor than was verified.

        The user's row is locked: a change of the password or the factor waits, and then finds this session.
        """
        begun = await self.sql.run(
            _BEGIN,
            id=session_id,
            user_id=user_id,
            verified=verified,
            totp_since=totp_since,
            idle=idle,
            address=device.address,
            user_agent=device.user_agent,
        )
        if begun:
            await self.sql.run(_GIVE, hash=token, session_id=session_id, follows=None)
        return bool(begun)

    async def end_beyond(self, user_id: int, most: int) -> None:
        """End all but the user's `most` last used sessions."""
        await self.sql.run(_END_BEYOND, user_id=user_id, most=most)

    async def lock_by_token(self, token: bytes) -> Presented | None:
        """The session that was given the refresh token with this hash, locked; None if there is none."""
        for row in await self.sql.fetch(_LOCK_BY_TOKEN, hash=token):
            return Presented(row["user_id"], row["id"])
        return None

    async def by_token(self, token: bytes, due: timedelta) -> tuple[Presented, bool] | None:
        """The session whose usable refresh token has this hash, and whether it was last extended `due` ago or earlier.

        None if there is none. Whether it has ended is for `UserRepository.signed_in` to say.
        """
        for row in await self.sql.fetch(_BY_TOKEN, hash=token, due=due):
            return Presented(row["user_id"], row["id"]), row["is_due"]
        return None

    async def is_reused(self, token: bytes, *, may_retry: bool = True) -> bool:
        """Whether this token of a locked session was used before, and this is not a retry (see `RETRY`)."""
        (row,) = await self.sql.fetch(_IS_REUSED, hash=token, retry=RETRY, may_retry=may_retry)
        return bool(row["reused"])

    async def rotate(self, session_id: UUID, shown: bytes, token: bytes) -> None:
        """Replace the session's usable token by `token`, which is given for `shown`."""
        await self.sql.run(_USE, session_id=session_id)
        await self.sql.run(_GIVE, hash=token, session_id=session_id, follows=shown)

    async def extend(self, session_id: UUID, idle: timedelta, longest: timedelta, device: Device) -> None:
        """Let the session, if it has not ended, last until `idle` from now; not beyond `longest` after its begin."""
        await self.sql.run(
            _EXTEND,
            session_id=session_id,
            idle=idle,
            longest=longest,
            address=device.address,
            user_agent=device.user_agent,
        )

    async def end(self, user_id: int, session_id: UUID, reason: Ended) -> bool:
        """End one session of the user; False if it has ended or is not theirs."""
        return await self.sql.run(_END, user_id=user_id, session_id=session_id, reason=reason.value) == 1

    async def end_all(self, user_id: int, reason: Ended, but: UUID | None = None) -> None:
        """End the user's sessions, except one if given."""
        await self.sql.run(_END_ALL, user_id=user_id, but=but, reason=reason.value)

    async def of_user(self, user_id: int, limit: int) -> Sequence[Row]:
        """The user's sessions that have not ended, the last used first."""
        return await self.sql.fetch(_OF_USER, user_id=user_id, limit=limit)

    async def expired(self, retention: timedelta, after: ExpiredSession | None, limit: int) -> list[ExpiredSession]:
        """Up to `limit` sessions that ended longer ago than the retention, after `after` in the order of their end."""
        at, last = after or (0.0, UUID(int=0))
        rows = await self.sql.fetch(_EXPIRED, retention=retention, at=at, after=last, limit=limit)
        return [ExpiredSession(row["at"], row["id"]) for row in rows]

    async def delete_expired(self, retention: timedelta, session_ids: Sequence[UUID]) -> list[UUID]:
        """Delete those of the sessions that are expired and not locked, with their tokens; returns their ids."""
        rows = await self.sql.fetch(_DELETE_EXPIRED, retention=retention, ids=list(session_ids))
        return [row["id"] for row in rows]


_BEGIN = Statement("""
    INSERT INTO sessions (id, user_id, expires_at, address, user_agent)
    SELECT CAST(:id AS uuid), id, now() + CAST(:idle AS interval), :address, :user_agent FROM users
    WHERE id = :user_id AND hashed_password = :verified AND is_active AND deleted_at IS NULL
        AND totp_since IS NOT DISTINCT FROM CAST(:totp_since AS timestamptz) FOR SHARE
""")

_GIVE = Statement("INSERT INTO refresh_tokens (hash, session_id, follows) VALUES (:hash, :session_id, :follows)")

_ENDED = "ended_at = now(), expires_at = least(expires_at, now())"
_LIVES = "ended_at IS NULL AND expires_at > now()"

_END_BEYOND = Statement(f"""
    UPDATE sessions SET {_ENDED}, end_reason = 'crowded_out' WHERE id IN (
        SELECT id FROM sessions WHERE user_id = :user_id AND {_LIVES} ORDER BY last_used_at DESC, id DESC OFFSET :most
    )
""")  # noqa: S608

_LOCK_BY_TOKEN = Statement("""
    SELECT sessions.id, sessions.user_id FROM refresh_tokens JOIN sessions ON sessions.id = refresh_tokens.session_id
    WHERE refresh_tokens.hash = :hash FOR NO KEY UPDATE OF sessions
""")

_BY_TOKEN = Statement("""
    SELECT sessions.id, sessions.user_id, last_used_at <= now() - CAST(:due AS interval) AS is_due
    FROM refresh_tokens JOIN sessions ON sessions.id = refresh_tokens.session_id
    WHERE refresh_tokens.hash = :hash AND refresh_tokens.used_at IS NULL
""")

# A used token may be retried only while its successor is the usable one: a client that used that one had the reply.
_IS_REUSED = Statement("""
    SELECT used_at IS NOT NULL AND NOT (:may_retry AND used_at > now() - CAST(:retry AS interval) AND EXISTS (
        SELECT FROM refresh_tokens AS next
        WHERE next.session_id = shown.session_id AND next.used_at IS NULL AND next.follows = shown.hash
    )) AS reused
    FROM refresh_tokens AS shown WHERE hash = :hash
""")

_USE = Statement("UPDATE refresh_tokens SET used_at = now() WHERE session_id = :session_id AND used_at IS NULL")

_EXTEND = Statement(f"""
    UPDATE sessions SET last_used_at = now(), address = :address, user_agent = :user_agent,
        expires_at = least(now() + CAST(:idle AS interval), created_at + CAST(:longest AS interval))
    WHERE id = :session_id AND {_LIVES}
""")  # noqa: S608

_END = Statement(f"""
    UPDATE sessions SET {_ENDED}, end_reason = :reason WHERE id = :session_id AND user_id = :user_id AND {_LIVES}
""")  # noqa: S608

_END_ALL = Statement(f"""
    UPDATE sessions SET {_ENDED}, end_reason = :reason
    WHERE user_id = :user_id AND {_LIVES} AND id IS DISTINCT FROM CAST(:but AS uuid)
""")  # noqa: S608

_OF_USER = Statement(f"""
    SELECT id, created_at, last_used_at, expires_at, address, user_agent FROM sessions
    WHERE user_id = :user_id AND {_LIVES} ORDER BY last_used_at DESC, id DESC LIMIT :limit
""")  # noqa: S608

_EXPIRED = Statement("""
    SELECT extract(epoch FROM expires_at)::float8 AS at, id FROM sessions
    WHERE expires_at < now() - CAST(:retention AS interval) AND (expires_at, id) > (to_timestamp(:at), :after)
    ORDER BY expires_at, id LIMIT :limit
""")

_DELETE_EXPIRED = Statement("""
    DELETE FROM sessions WHERE id IN (
        SELECT id FROM sessions WHERE id = ANY(CAST(:ids AS uuid[]))
        AND expires_at < now() - CAST(:retention AS interval) FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")
