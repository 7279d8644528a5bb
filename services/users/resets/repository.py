"""All SQL about mails and one-time tokens."""

from datetime import timedelta

from services.fields import made_storable
from services.sql import Row, SqlAccess, Statement
from services.users.resets.models import MailKind

_LONGEST_ERROR = 500


class MailRepository(SqlAccess):
    """Mails that are to be sent, and the tokens in them."""

    async def ask(self, kind: MailKind, email: str) -> None:
        """Queue a mail to the active user with this address, if there is one and no such mail is waiting."""
        await self.sql.run(_ASK, kind=kind.value, email=email)

    async def claim(self) -> Row | None:
        """The mail that has been due the longest, with the address it goes to; None if none is due.

        It is due again later: if it was sent, it is deleted before then.
        """
        for row in await self.sql.fetch(_CLAIM):
            return row
        return None

    async def give_token(self, token: bytes, kind: MailKind, user_id: int, email: str, ttl: timedelta) -> None:
        """Store the hash of the token that a mail has."""
        await self.sql.run(_GIVE, hash=token, purpose=kind.value, user_id=user_id, email=email, ttl=ttl)

    async def sent(self, mail_id: int) -> None:
        """Delete a mail that was sent."""
        await self.sql.run(_SENT, id=mail_id)

    async def failed(self, mail_id: int, error: str) -> None:
        """Note why a mail was not sent."""
        await self.sql.run(_FAILED, id=mail_id, error=made_storable(error)[:_LONGEST_ERROR])

    async def drop_stale(self) -> int:
        """Delete expired tokens, and mails that could not be sent for a day; returns the number of these mails."""
        await self.sql.run(_DROP_EXPIRED)
        return await self.sql.run(_DROP_STALE)

    async def is_valid(self, token: bytes, kind: MailKind) -> bool:
        """Whether the token could be used now."""
        return bool(await self.sql.fetch(_FIND, hash=token, purpose=kind.value))

    async def use(self, token: bytes, kind: MailKind) -> int | None:
        """Delete the token, and the user's others of the kind; returns the user's id, or None if it is not valid.

        Of two who use it at the same time, the second waits and gets None.
        """
        for row in await self.sql.fetch(_USE, hash=token, purpose=kind.value):
            await self.forget(row["user_id"], kind)
            return int(row["user_id"])
        return None

    async def forget(self, user_id: int, kind: MailKind) -> None:
        """Delete all tokens of the kind that the user was sent."""
        await self.sql.run(_FORGET, user_id=user_id, purpose=kind.value)


_ASK = Statement("""
    INSERT INTO mails (kind, user_id) SELECT CAST(:kind AS text), id FROM users
    WHERE lower(email) = lower(:email) AND is_active AND deleted_at IS NULL AND NOT EXISTS (
        SELECT FROM mails WHERE mails.user_id = users.id AND mails.kind = CAST(:kind AS text) AND attempts = 0
    )
""")

# The first pause is longer than the sending of a mail may take: until then no other worker takes it.
_CLAIM = Statement("""
    UPDATE mails SET attempts = attempts + 1,
        due_at = now() + make_interval(secs => least(60 * power(2, least(attempts, 10)), 3600))
    WHERE id = (
        SELECT mails.id FROM mails LEFT JOIN users ON users.id = user_id
        WHERE due_at <= now() AND (user_id IS NULL OR (is_active AND deleted_at IS NULL))
        ORDER BY due_at, mails.id LIMIT 1 FOR UPDATE OF mails SKIP LOCKED
    ) RETURNING id, kind, user_id, unverified_id,
        coalesce(email, (SELECT users.email FROM users WHERE users.id = mails.user_id)) AS email
""")

_GIVE = Statement("""
    INSERT INTO one_time_tokens (hash, purpose, user_id, email, expires_at)
    VALUES (:hash, :purpose, :user_id, :email, now() + CAST(:ttl AS interval))
""")

_SENT = Statement("DELETE FROM mails WHERE id = :id")

_FAILED = Statement("UPDATE mails SET last_error = :error WHERE id = :id")

_DROP_EXPIRED = Statement("DELETE FROM one_time_tokens WHERE expires_at < now()")

_DROP_STALE = Statement("DELETE FROM mails WHERE created_at < now() - interval '1 day'")

_VALID = """
    token.hash = :hash AND token.purpose = :purpose AND token.expires_at > now() AND users.id = token.user_id
    AND users.email = token.email AND users.is_active AND users.deleted_at IS NULL
"""

_FIND = Statement(f"SELECT token.user_id FROM one_time_tokens AS token, users WHERE {_VALID}")  # noqa: S608

_USE = Statement(f"DELETE FROM one_time_tokens AS token USING users WHERE {_VALID} RETURNING token.user_id")  # noqa: S608

_FORGET = Statement("DELETE FROM one_time_tokens WHERE user_id = :user_id AND purpose = :purpose")
