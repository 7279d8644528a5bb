"""All SQL about second factors."""

from collections.abc import Sequence
from typing import NamedTuple

from services.sql import SqlAccess, Statement
from services.users.totp.codes import Sealed


class OldSecret(NamedTuple):
    """A secret that was encrypted with the previous key."""

    user_id: int

    @property
    def subject(self) -> str:
        return str(self.user_id)


class TotpRepository(SqlAccess):
    """Secrets of authenticator apps, and recovery codes."""

    async def keep(self, user_id: int, sealed: Sealed) -> None:
        """Store the secret of an app that the user has not confirmed yet, instead of an earlier one."""
        await self.sql.run(_KEEP, user_id=user_id, sealed=sealed.token, key_id=sealed.key_id)

    async def sealed(self, user_id: int) -> Sealed | None:
        """The user's secret, confirmed or not."""
        for row in await self.sql.fetch(_SEALED, user_id=user_id):
            return Sealed(row["sealed"], row["key_id"])
        return None

    async def use_step(self, user_id: int, step: int) -> bool:
        """Note that the code of this time step was used; False if one of this step or a later one was used before.

        Of two who use a code at the same time, the second waits, and gets False if the first commits.
        """
        return await self.sql.run(_USE_STEP, user_id=user_id, step=step) == 1

    async def use_recovery_code(self, user_id: int, code_hash: bytes) -> bool:
        """Delete a recovery code; False if there is none like it. Simultaneous uses are as for `use_step`."""
        return await self.sql.run(_USE_RECOVERY_CODE, user_id=user_id, hash=code_hash) == 1

    async def replace_recovery_codes(self, user_id: int, hashes: Sequence[bytes]) -> None:
        """Make the user's recovery codes these, and no others."""
        await self.sql.run(_FORGET_RECOVERY_CODES, user_id=user_id)
        await self.sql.run(_KEEP_RECOVERY_CODES, user_id=user_id, hashes=list(hashes))

    async def recovery_codes_left(self, user_id: int) -> int:
        """The number of recovery codes that the user has not used."""
        (row,) = await self.sql.fetch(_LEFT, user_id=user_id)
        return int(row["number"])

    async def forget(self, user_id: int) -> None:
        """Delete the user's secret and recovery codes."""
        await self.sql.run(_FORGET_SECRET, user_id=user_id)
        await self.sql.run(_FORGET_RECOVERY_CODES, user_id=user_id)

    async def sealed_with(self, key_id: str, after: int, limit: int) -> list[OldSecret]:
        """Up to `limit` users after `after` whose secrets are encrypted with this key."""
        rows = await self.sql.fetch(_SEALED_WITH, key_id=key_id, after=after, limit=limit)
        return [OldSecret(row["user_id"]) for row in rows]

    async def lock_sealed_with(self, key_id: str, user_ids: Sequence[int]) -> dict[int, bytes]:
        """Those secrets of these users that are encrypted with this key, by user, locked; locked ones are left out."""
        rows = await self.sql.fetch(_LOCK_SEALED_WITH, key_id=key_id, user_ids=list(user_ids))
        return {row["user_id"]: row["sealed"] for row in rows}

    async def seal_again(self, sealed: dict[int, Sealed]) -> None:
        """Store the same secrets, encrypted with another key."""
        await self.sql.run(
            _SEAL_AGAIN,
            user_ids=list(sealed),
            sealed=[one.token for one in sealed.values()],
            key_ids=[one.key_id for one in sealed.values()],
        )


_KEEP = Statement("""
    INSERT INTO totp_secrets (user_id, sealed, key_id) VALUES (:user_id, :sealed, :key_id)
    ON CONFLICT (user_id) DO UPDATE SET sealed = excluded.sealed, key_id = excluded.key_id, last_step = NULL,
        created_at = now()
""")

_SEALED = Statement("SELECT sealed, key_id FROM totp_secrets WHERE user_id = :user_id")

_USE_STEP = Statement("""
    UPDATE totp_secrets SET last_step = CAST(:step AS bigint)
    WHERE user_id = :user_id AND (last_step IS NULL OR last_step < CAST(:step AS bigint))
""")

_USE_RECOVERY_CODE = Statement("DELETE FROM recovery_codes WHERE user_id = :user_id AND hash = :hash")

_FORGET_RECOVERY_CODES = Statement("DELETE FROM recovery_codes WHERE user_id = :user_id")

_KEEP_RECOVERY_CODES = Statement("""
    INSERT INTO recovery_codes (user_id, hash) SELECT :user_id, hash FROM unnest(CAST(:hashes AS bytea[])) AS hash
""")

_LEFT = Statement("SELECT count(*) AS number FROM recovery_codes WHERE user_id = :user_id")

_FORGET_SECRET = Statement("DELETE FROM totp_secrets WHERE user_id = :user_id")

_SEALED_WITH = Statement("""
    SELECT user_id FROM totp_secrets WHERE key_id = :key_id AND user_id > :after ORDER BY user_id LIMIT :limit
""")

_LOCK_SEALED_WITH = Statement("""
    SELECT user_id, sealed FROM totp_secrets
    WHERE user_id = ANY(CAST(:user_ids AS bigint[])) AND key_id = :key_id FOR NO KEY UPDATE SKIP LOCKED
""")

_SEAL_AGAIN = Statement("""
    UPDATE totp_secrets SET sealed = new.sealed, key_id = new.key_id
    FROM unnest(CAST(:user_ids AS bigint[]), CAST(:sealed AS bytea[]), CAST(:key_ids AS text[]))
        AS new (user_id, sealed, key_id)
    WHERE totp_secrets.user_id = new.user_id
""")
