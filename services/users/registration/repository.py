"""All SQL about addresses that wait to be confirmed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from services.sql import Row, SqlAccess, Statement


class ExpiredEmail(NamedTuple):
    """An address that was not confirmed in time."""

    at: float
    unverified_id: int

    @property
    def subject(self) -> str:
        return str(self.unverified_id)


class RegistrationRepository(SqlAccess):
    """Addresses that wait to be confirmed, and the mails about them."""

    async def ask(
        self,
        email: str,
        ttl: timedelta,
        *,
        user_id: int | None = None,
        name: str | None = None,
        hashed: str | None = None,
    ) -> None:
        """Note who wants the address, and queue a mail to it. It does not read whether the address is taken."""
        await self.sql.run(_ASK, email=email, user_id=user_id, full_name=name, hashed=hashed, ttl=ttl)

    async def outlook(self, unverified_id: int) -> Row | None:
        """Whether a user has the address (`taken`), even a deleted one, and whether a mail has said so (`told`).

        None if it has expired.
        """
        for row in await self.sql.fetch(_OUTLOOK, id=unverified_id):
            return row
        return None

    async def note_told(self, unverified_id: int) -> None:
        """Note that a mail says that the address is taken."""
        await self.sql.run(_TOLD, id=unverified_id)

    async def give_token(self, token: bytes, unverified_id: int) -> None:
        """Store the hash of the token that a mail has. It expires with the row."""
        await self.sql.run(_GIVE, hash=token, id=unverified_id)

    async def of_token(self, token: bytes) -> Row | None:
        """What the token confirms, with the hash of the password that goes with it; None if it is not valid."""
        for row in await self.sql.fetch(_OF_TOKEN, hash=token):
            return row
        return None

    async def use(self, token: bytes) -> bool:
        """Delete the token; False if someone else has used it."""
        return await self.sql.run(_USE, hash=token) == 1

    async def forget(self, email: str) -> None:
        """Delete whatever waits for this address, with its tokens and mails: it is confirmed."""
        await self.sql.run(_FORGET, email=email)

    async def tell_former_address(self, email: str) -> None:
        """Queue a mail to an address that was a user's until now."""
        await self.sql.run(_TELL_FORMER, email=email)

    async def expired(self, after: ExpiredEmail | None, limit: int) -> list[ExpiredEmail]:
        """Up to `limit` rows that have expired, after `after` in the order of their end."""
        at, last = after or (0.0, 0)
        rows = await self.sql.fetch(_EXPIRED, at=at, after=last, limit=limit)
        return [ExpiredEmail(row["at"], row["id"]) for row in rows]

    async def delete_expired(self, ids: Sequence[int]) -> list[int]:
        """Delete those of the rows that have expired and are not locked; returns their ids."""
        rows = await self.sql.fetch(_DELETE_EXPIRED, ids=list(ids))
        return [row["id"] for row in rows]


_ASK = Statement("""
    WITH unverified AS (
        INSERT INTO unverified_emails (email, user_id, full_name, hashed_password, expires_at) VALUES (
            CAST(:email AS varchar), CAST(:user_id AS bigint), CAST(:full_name AS varchar), CAST(:hashed AS varchar),
            now() + CAST(:ttl AS interval)
        ) RETURNING id, email
    )
    INSERT INTO mails (kind, email, unverified_id) SELECT 'verification', email, id FROM unverified
""")

_OUTLOOK = Statement("""
    SELECT EXISTS (SELECT FROM users WHERE lower(users.email) = lower(this.email)) AS taken, EXISTS (
        SELECT FROM unverified_emails AS other
        WHERE other.email = this.email AND other.id <> this.id
            AND other.told_at IS NOT NULL AND other.expires_at > now()
    ) AS told
    FROM unverified_emails AS this WHERE id = :id AND expires_at > now()
""")

_TOLD = Statement("UPDATE unverified_emails SET told_at = now() WHERE id = :id")

_GIVE = Statement("""
    INSERT INTO one_time_tokens (hash, purpose, unverified_id, email, expires_at)
    SELECT :hash, 'verification', id, email, expires_at FROM unverified_emails WHERE id = :id
""")

_OF_TOKEN = Statement("""
    SELECT this.id, this.email, this.user_id, this.full_name,
        coalesce(this.hashed_password, users.hashed_password) AS hashed_password
    FROM one_time_tokens AS token JOIN unverified_emails AS this ON this.id = token.unverified_id
        LEFT JOIN users ON users.id = this.user_id
    WHERE token.hash = :hash AND token.purpose = 'verification' AND token.expires_at > now()
        AND (this.user_id IS NULL OR (users.is_active AND users.deleted_at IS NULL))
""")

_USE = Statement("DELETE FROM one_time_tokens WHERE hash = :hash")

_FORGET = Statement("DELETE FROM unverified_emails WHERE email = :email")

_TELL_FORMER = Statement("INSERT INTO mails (kind, email) VALUES ('email_changed', :email)")

_EXPIRED = Statement("""
    SELECT extract(epoch FROM expires_at)::float8 AS at, id FROM unverified_emails
    WHERE expires_at < now() AND (expires_at, id) > (to_timestamp(:at), :after)
    ORDER BY expires_at, id LIMIT :limit
""")

_DELETE_EXPIRED = Statement("""
    DELETE FROM unverified_emails WHERE id IN (
        SELECT id FROM unverified_emails WHERE id = ANY(CAST(:ids AS bigint[])) AND expires_at < now()
        FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")
