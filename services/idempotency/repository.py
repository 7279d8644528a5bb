"""All SQL about idempotency keys."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import NamedTuple

from services.sql import Read, Reading, Results, SqlAccess, Statement, Write, Writing


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What identifies a request: caller, method, path and key. `fingerprint` is the body's SHA-256."""

    caller_id: int
    method: str
    path: str
    key: str
    fingerprint: bytes

    def lock(self) -> int:
        """A 64-bit number for an advisory lock; two different requests share one with a probability of 2**-64."""
        scope = f"{self.caller_id} {self.method} {self.path} {self.key}".encode()
        return int.from_bytes(blake2b(scope, digest_size=8).digest(), "big", signed=True)


class OldKey(NamedTuple):
    """A stored key to delete. `place` is its `ctid` (page and item), valid only for a moment."""

    place: tuple[int, int]
    caller_id: int
    method: str
    path: str
    key: str

    @property
    def subject(self) -> str:
        return f"{self.caller_id} {self.method} {self.path} {self.key}"


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The final outcome of a request. `awaits_standby` is whether commits wait for a synchronous standby.

    `role` is the role for which the reply was made; None if the release before stored it. `scopes` are those of the API
    key for which it was made, with spaces between them; None for a person.
    """

    fingerprint: bytes
    role: str | None
    scopes: str | None
    status: int
    headers: Mapping[str, str]
    body: bytes
    awaits_standby: bool


class KeptReply(NamedTuple):
    """A reply to store under the request's key. `role` and `scopes` say for whom it was made, as in `StoredReply`."""

    request: RequestKey
    role: str
    scopes: str | None
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class InFlight:
    """Another transaction is processing the same request."""


@dataclass(frozen=True, slots=True)
class Free:
    """The key was unused; this transaction now owns it."""


class IdempotencyRepository(SqlAccess):
    """Keys and the replies stored under them."""

    async def take(self, request: RequestKey) -> StoredReply | InFlight | Free:
        """Take the key for this transaction, unless it has a stored reply or is in flight."""
        (row,) = await self.sql.fetch(
            _TAKE,
            lock=request.lock(),
            caller_id=request.caller_id,
            method=request.method,
            path=request.path,
            key=request.key,
        )
        if row["status"] is not None:
            return StoredReply(*(row[name] for name in _OF_REPLY))
        return Free() if row["taken"] else InFlight()

    @staticmethod
    def taking(requests: Sequence[RequestKey]) -> "Read[list[StoredReply | InFlight | Free]]":
        """Take several different keys as `take` does, as a part of a longer read. The outcomes are in this order."""
        parameters = {
            "locks": [request.lock() for request in requests],
            "caller_ids": [request.caller_id for request in requests],
            "methods": [request.method for request in requests],
            "paths": [request.path for request in requests],
            "keys": [request.key for request in requests],
        }
        return Read(_TAKE_ALL, parameters, _taken)

    @staticmethod
    def storing_all(replies: "Sequence[KeptReply]") -> Write:
        """Store several replies as `storing` does."""
        parameters = {
            "caller_ids": [one.request.caller_id for one in replies],
            "methods": [one.request.method for one in replies],
            "paths": [one.request.path for one in replies],
            "keys": [one.request.key for one in replies],
            "fingerprints": [one.request.fingerprint for one in replies],
            "roles": [one.role for one in replies],
            "scopes": [one.scopes for one in replies],
            "statuses": [one.status for one in replies],
            "headers": [json.dumps(dict(one.headers)) for one in replies],
            "bodies": [one.body for one in replies],
        }
        return Write(_STORE_ALL, parameters)

    @staticmethod
    def storing(reply: KeptReply) -> Write:
        """Store the reply under its key.

        Raises `IntegrityError` on `PRIMARY_KEY` if another transaction has stored one after this one looked. Then the
        whole transaction must be retried, and finds that reply.
        """
        parameters = {
            "caller_id": reply.request.caller_id,
            "method": reply.request.method,
            "path": reply.request.path,
            "key": reply.request.key,
            "fingerprint": reply.request.fingerprint,
            "role": reply.role,
            "scopes": reply.scopes,
            "status": reply.status,
            "headers": json.dumps(dict(reply.headers)),
            "body": reply.body,
        }
        return Write(_STORE, parameters)

    async def write_marker(self) -> None:
        """Write a record that nothing reads, so that the commit waits until the standbys have everything before it."""
        await self.sql.fetch(_MARK)

    async def old(self, retention: timedelta, after: OldKey | None, limit: int) -> list[OldKey]:
        """Up to `limit` keys older than the retention that come after `after` in the table."""
        place = (0, 0) if after is None else after.place
        rows = await self.sql.fetch(_OLD, retention=retention, after=place, limit=limit)
        return sorted(OldKey(*row.values()) for row in rows)

    async def delete_old(self, retention: timedelta, keys: Sequence[OldKey]) -> list[OldKey]:
        """Delete the keys that are older than the retention and not locked; returns the deleted ones."""
        places = [key.place for key in keys]
        rows = await self.sql.fetch(_DELETE_OLD, retention=retention, places=places)
        return [OldKey(*row.values()) for row in rows]


_OF_REPLY = ("fingerprint", "role", "scopes", "status", "headers", "body", "awaits_standby")
"""The fields of `StoredReply`, as the statements name them."""

# The lock is held until the transaction ends. Advisory locks belong to the database, so the schema is a part of its
# number: tenants have callers with the same ids. A transaction that cannot get it knows that the request is in flight.
_TAKE = Statement("""
    SELECT pg_try_advisory_xact_lock(CAST(:lock AS bigint) # hashtextextended(current_schema(), 0)) AS taken,
        stored.fingerprint, stored.role, stored.scopes, stored.status, stored.headers, stored.body,
        current_setting('synchronous_standby_names') <> '' AS awaits_standby
    FROM (SELECT) AS one LEFT JOIN idempotency_keys AS stored
    ON stored.caller_id = :caller_id AND stored.method = :method AND stored.path = :path AND stored.key = :key
""")

_TAKE_ALL = Reading(
    """
    wanted_keys AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:locks AS bigint[]), CAST(:caller_ids AS bigint[]), CAST(:methods AS text[]), CAST(:paths AS text[]),
            CAST(:keys AS text[])
        ) WITH ORDINALITY AS wanted(lock, caller_id, method, path, key, place)
    ), taken_keys AS MATERIALIZED (
        SELECT place, pg_try_advisory_xact_lock(lock # hashtextextended(current_schema(), 0)) AS taken FROM wanted_keys
    ), stored_replies AS MATERIALIZED (
        SELECT place, fingerprint, role, scopes, status, headers, body,
            current_setting('synchronous_standby_names') <> '' AS awaits_standby
        FROM wanted_keys JOIN idempotency_keys USING (caller_id, method, path, key)
    )
    """,
    results={
        "taken_keys": ("place", "taken"),
        "stored_replies": ("place", *_OF_REPLY),
    },
)

_STORE = Writing("""
    stored AS (
        INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, role, scopes, status, headers, body)
        VALUES (:caller_id, :method, :path, :key, :fingerprint, :role, :scopes, :status, :headers, :body)
    )
""")

_STORE_ALL = Writing("""
    stored AS (
        INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, role, scopes, status, headers, body)
        SELECT * FROM unnest(
            CAST(:caller_ids AS bigint[]), CAST(:methods AS text[]), CAST(:paths AS text[]), CAST(:keys AS text[]),
            CAST(:fingerprints AS bytea[]), CAST(:roles AS text[]), CAST(:scopes AS text[]),
            CAST(:statuses AS smallint[]), CAST(:headers AS jsonb[]), CAST(:bodies AS bytea[])
        )
    )
""")

# The smallest write that makes a commit wait for the standbys: a record in the log, without a row.
_MARK = Statement("SELECT pg_logical_emit_message(true, 'waybill', '')")

# In the order of the table: each slice continues after the previous one.
_OLD = Statement("""
    SELECT ctid, caller_id, method, path, key FROM idempotency_keys
    WHERE created_at < now() - CAST(:retention AS interval) AND ctid > CAST(:after AS tid) LIMIT :limit
""")

# The age is checked again: if a row was deleted in the meantime, its place may hold another one.
_DELETE_OLD = Statement("""
    DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM idempotency_keys WHERE ctid = ANY(CAST(:places AS tid[]))
        AND created_at < now() - CAST(:retention AS interval) FOR UPDATE SKIP LOCKED
    )) RETURNING ctid, caller_id, method, path, key
""")


def _taken(results: Results) -> list[StoredReply | InFlight | Free]:
    taken, stored = results
    outcomes: list[StoredReply | InFlight | Free] = [Free() if free else InFlight() for _, free in sorted(taken)]
    for place, *reply in stored:
        outcomes[place - 1] = StoredReply(*reply)
    return outcomes


PRIMARY_KEY = "pk_idempotency_keys"
"""The constraint that a second effect under the same key violates."""
