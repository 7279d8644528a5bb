"""All SQL about API keys, other than the look-up of a caller, which is in `services/users/repository.py`."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, literal, text
from sqlmodel import col, select

from services.repository import Lock, Repository
from services.sql import Statement
from services.users.keys.models import ApiKey


class EndedKey(NamedTuple):
    """A key that could last be used longer ago than the retention."""

    at: float
    key_id: UUID

    @property
    def subject(self) -> str:
        return str(self.key_id)


class Count(NamedTuple):
    """How many of a user's keys can be used, and how many of them have not been replaced."""

    usable: int
    lasting: int


_USABLE = "revoked_at IS NULL AND least(expires_at, retires_at) > now()"


class ApiKeyRepository(Repository[ApiKey]):
    model = ApiKey

    async def lock_owner(self, user_id: int) -> bool:
        """Whether the user is active. Locks the user: only one transaction at a time makes keys, or ends the user."""
        return bool(await self.sql.fetch(_LOCK_OWNER, user_id=user_id))

    async def count_of(self, user_id: int) -> Count:
        (row,) = await self.sql.fetch(_COUNT, user_id=user_id)
        return Count(row["usable"], row["lasting"])

    async def of_user(self, user_id: int) -> list[ApiKey]:
        """The user's keys that can be used, the newest first."""
        statement = select(ApiKey).where(col(ApiKey.user_id) == user_id, text(_USABLE)).order_by(col(ApiKey.id).desc())
        return list(await self.session.exec(statement))

    async def find(self, user_id: int, key_id: UUID, *, lock: Lock | None = None) -> ApiKey | None:
        """The user's key if it can be used."""
        statement = select(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.user_id) == user_id, text(_USABLE))
        return (await self.session.exec(self._locked(statement, lock))).one_or_none()

    async def owners(self, key_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The user of each of these keys; those of deleted keys are missing."""
        among = col(ApiKey.id) == any_(literal(list(key_ids), ARRAY(Uuid)))
        return dict((await self.session.exec(select(col(ApiKey.id), col(ApiKey.user_id)).where(among))).all())

    async def follow(self, old: UUID, new: UUID, hashed: bytes, hint: str, longest: timedelta) -> None:
        """Write the key that replaces another one. It has the same owner, name, scopes and lifetime.

        Plain SQL: scopes that this release does not know stay as they are.
        """
        await self.sql.run(_FOLLOW, old=old, new=new, hash=hashed, hint=hint, longest=longest)

    async def retire(self, key_id: UUID, overlap: timedelta) -> None:
        """Let the key end after the overlap, unless it ends before anyway."""
        await self.sql.run(_RETIRE, key_id=key_id, overlap=overlap)

    async def revoke(self, user_id: int, key_id: UUID) -> bool:
        """End one key of the user; False if it has ended or is not theirs."""
        return await self.sql.run(_REVOKE, user_id=user_id, key_id=key_id) == 1

    async def revoke_all(self, user_id: int) -> None:
        """End all keys of the user."""
        await self.sql.run(_REVOKE_ALL, user_id=user_id)

    async def mark_used(self, uses: Mapping[bytes, datetime]) -> None:
        """Store when the keys with these hashes were last used."""
        await self.sql.run(_MARK_USED, hashes=list(uses), times=list(uses.values()))

    async def ended(self, retention: timedelta, after: EndedKey | None, limit: int) -> list[EndedKey]:
        """Up to `limit` keys that ended before the retention, after `after` in the order of their end."""
        at, last = after or (0.0, UUID(int=0))
        rows = await self.sql.fetch(_ENDED, retention=retention, at=at, after=last, limit=limit)
        return [EndedKey(row["at"], row["id"]) for row in rows]

    async def delete_ended(self, retention: timedelta, key_ids: Sequence[UUID]) -> list[UUID]:
        """Delete those of the keys that ended before the retention and are not locked; returns them."""
        return [row["id"] for row in await self.sql.fetch(_DELETE_ENDED, retention=retention, ids=list(key_ids))]


_LOCK_OWNER = Statement("""
    SELECT id FROM users WHERE id = :user_id AND is_active AND deleted_at IS NULL FOR NO KEY UPDATE
""")

_COUNT = Statement(f"""
    SELECT count(*) AS usable, count(*) FILTER (WHERE retires_at IS NULL) AS lasting
    FROM api_keys WHERE user_id = :user_id AND {_USABLE}
""")  # noqa: S608

_FOLLOW = Statement("""
    INSERT INTO api_keys (id, user_id, name, hash, hint, scopes, expires_at, replaces)
    SELECT :new, user_id, name, :hash, :hint, scopes,
        now() + least(expires_at - created_at, CAST(:longest AS interval)), id
    FROM api_keys WHERE id = :old
""")

_RETIRE = Statement("""
    UPDATE api_keys SET retires_at = least(retires_at, now() + CAST(:overlap AS interval)) WHERE id = :key_id
""")

_REVOKE = Statement(f"""
    UPDATE api_keys SET revoked_at = now() WHERE id = :key_id AND user_id = :user_id AND {_USABLE}
""")  # noqa: S608

_REVOKE_ALL = Statement(f"""
    UPDATE api_keys SET revoked_at = now() WHERE user_id = :user_id AND {_USABLE}
""")  # noqa: S608

# Locked in the order of their ids: other processes mark some of the same keys.
_MARK_USED = Statement("""
    WITH used AS MATERIALIZED (
        SELECT api_keys.id, used.at
        FROM unnest(CAST(:hashes AS bytea[]), CAST(:times AS timestamptz[])) AS used(hash, at)
        JOIN api_keys ON api_keys.hash = used.hash
        ORDER BY api_keys.id FOR NO KEY UPDATE OF api_keys
    )
    UPDATE api_keys SET last_used_at = greatest(last_used_at, used.at) FROM used WHERE api_keys.id = used.id
""")

_AT = "least(expires_at, retires_at, revoked_at)"

_ENDED = Statement(f"""
    SELECT extract(epoch FROM {_AT})::float8 AS at, id FROM api_keys
    WHERE {_AT} < now() - CAST(:retention AS interval) AND ({_AT}, id) > (to_timestamp(:at), :after)
    ORDER BY {_AT}, id LIMIT :limit
""")  # noqa: S608

_DELETE_ENDED = Statement(f"""
    DELETE FROM api_keys WHERE id IN (
        SELECT id FROM api_keys WHERE id = ANY(CAST(:ids AS uuid[]))
        AND {_AT} < now() - CAST(:retention AS interval) FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")  # noqa: S608
