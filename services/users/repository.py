"""All SQL about users."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import defer
from sqlmodel import col, select

from services.fields import Id, Instant, Moment, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable
from services.query import Listing, Sortable
from services.repository import SoftDeleteRepository
from services.sql import Read, Reading, Statement
from services.users.models import Credential, Presented, PresentedKey, User
from services.users.rights import PERSONAL, PROFILE, SCOPES, Role, Scope


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An active user, as every request reads it: one light statement, no mapped object.

    The user is here in person, in a session, or has given a program an API key. `scopes` are those of the key, as they
    are stored: the next release may know more of them.
    """

    id: int
    full_name: str
    role: Role
    session_id: UUID | None = None
    key_id: UUID | None = None
    scopes: frozenset[str] | None = None
    limited: bool = False
    """Whether they have to set up a second factor before they may do more than that."""

    @property
    def actor(self) -> str:
        return f"user:{self.id}" if self.key_id is None else f"key:{self.key_id}"

    def may(self, scope: Scope) -> bool:
        held = PROFILE if self.limited else SCOPES[self.role]
        # A key may have been made before a scope became one of people only.
        return scope in held and (self.scopes is None or (scope in self.scopes and scope not in PERSONAL))


class UserRepository(SoftDeleteRepository[User]):
    model = User

    async def signed_in(self, caller: Presented, *, require_totp: bool) -> SignedIn | None:
        """The user if they may still use their token. `require_totp`: the staff is limited without a second factor."""
        for row in await self.sql.fetch(_CALLER, user_id=caller.user_id, session_id=caller.session_id):
            return _caller(row["id"], row["full_name"], row["role"], caller.session_id, row["has_totp"], require_totp)
        return None

    async def with_key(self, hashed: bytes, *, require_totp: bool) -> SignedIn | None:
        """The owner of the API key with this SHA-256 if it can be used; `require_totp` as above."""
        for row in await self.sql.fetch(_KEY_CALLER, hash=hashed):
            return _with_key(
                row["id"], row["full_name"], row["role"], row["key_id"], row["scopes"], row["has_totp"], require_totp
            )
        return None

    @staticmethod
    def all_signed_in(callers: Sequence[Credential], *, require_totp: bool) -> Read[dict[Credential, SignedIn]]:
        """Those who may still use their tokens and API keys, as a part of a longer read; `require_totp` as above."""
        tokens = [caller for caller in callers if isinstance(caller, Presented)]
        hashes = [caller.hash for caller in callers if isinstance(caller, PresentedKey)]
        of_tokens = {
            "caller_ids": [caller.user_id for caller in tokens],
            "session_ids": [caller.session_id for caller in tokens],
        }
        if not hashes:
            return Read(_CALLERS, of_tokens, lambda results: _signed_in(require_totp, results[0], ()))
        if not tokens:
            return Read(_KEY_CALLERS, {"hashes": hashes}, lambda results: _signed_in(require_totp, (), results[0]))
        return Read(_ALL_CALLERS, {**of_tokens, "hashes": hashes}, lambda results: _signed_in(require_totp, *results))

    async def lock_with(self, roles: Sequence[Role]) -> dict[Role, list[int]]:
        """The ids of all active users with each of these roles, locked until the transaction ends."""
        found: dict[Role, list[int]] = {role: [] for role in roles}
        for row in await self.sql.fetch(_LOCK_WITH, roles=[role.value for role in roles]):
            found[Role(row["role"])].append(row["id"])
        return found

    async def too_new_until(self, user_id: int, tenure: timedelta) -> datetime | None:
        """When the user will have had their role for this long, by the database's clock; None if they already have."""
        for row in await self.sql.fetch(_TOO_NEW, user_id=user_id, tenure=tenure):
            until: datetime = row["until"]
            return until
        return None

    async def replace_hash(self, user_id: int, verified: str, hashed: str) -> bool:
        """Store a new hash of the password that was verified; False if the password has been changed since.

        The version stays: nothing that the user could see has changed.
        """
        return await self.sql.run(_REPLACE_HASH, user_id=user_id, verified=verified, hashed=hashed) == 1

    async def by_email(self, email: str) -> User | None:
        statement = select(User).where(func.lower(User.email) == email.lower(), *self._visible())
        return (await self.session.exec(statement)).one_or_none()

    async def email_taken(self, email: str) -> bool:
        """Whether any user, even a deleted one, has the address."""
        return await self.exists(func.lower(User.email) == email.lower(), hidden=True)


_ID = Sortable(col(User.id), Id)

WITHOUT_PASSWORD = defer(cast(Any, User.hashed_password))
"""For reads on the replica, whose role may not see the column."""

USERS = Listing[User](
    filters={
        "email": Filterable(
            col(User.email), Text, TEXT, indexed=frozenset({"id", "created_at", "email"}), trigrams=True
        ),
        "full_name": Filterable(col(User.full_name), Text, TEXT, indexed=frozenset({"id"}), trigrams=True),
        "role": Filterable(col(User.role), Role, EXACT, indexed=frozenset({"id"})),
        "is_active": Filterable(col(User.is_active), bool, EXACT, indexed=frozenset({"id"})),
        "created_at": Filterable(col(User.created_at), Instant, ORDERED),
    },
    sorts={
        "id": _ID,
        "created_at": Sortable(col(User.created_at), Moment),
        "email": Sortable(col(User.email), Text),
    },
    key=_ID,
    default="id",
)

_LOCK_WITH = Statement("""
    SELECT id, role FROM users
    WHERE role = ANY(CAST(:roles AS text[])) AND is_active AND deleted_at IS NULL ORDER BY id FOR NO KEY UPDATE
""")

_TOO_NEW = Statement("""
    SELECT role_since + CAST(:tenure AS interval) AS until FROM users
    WHERE id = :user_id AND role_since + CAST(:tenure AS interval) > statement_timestamp()
""")

_MAY_CALL = """
    FROM sessions JOIN users ON users.id = sessions.user_id
    WHERE sessions.ended_at IS NULL AND sessions.expires_at > now() AND users.is_active AND users.deleted_at IS NULL
"""
"""Users and sessions whose tokens are valid. Every look-up of a caller by a token uses it."""

_MAY_CALL_WITH_KEY = """
    FROM api_keys JOIN users ON users.id = api_keys.user_id
    WHERE api_keys.revoked_at IS NULL AND least(api_keys.expires_at, api_keys.retires_at) > now()
        AND users.is_active AND users.deleted_at IS NULL
"""
"""Users and API keys that are valid. Every look-up of a caller by a key uses it."""

_CALLER = Statement(f"""
    SELECT users.id, users.full_name, users.role, users.totp_since IS NOT NULL AS has_totp {_MAY_CALL}
        AND users.id = :user_id AND sessions.id = :session_id
""")

_KEY_CALLER = Statement(f"""
    SELECT users.id, users.full_name, users.role, users.totp_since IS NOT NULL AS has_totp, api_keys.id AS key_id,
        api_keys.scopes {_MAY_CALL_WITH_KEY} AND api_keys.hash = :hash
""")

_REPLACE_HASH = Statement("""
    UPDATE users SET hashed_password = :hashed WHERE id = :user_id AND hashed_password = :verified
""")

_SIGNED_IN = f"""
    callers AS MATERIALIZED (
        SELECT users.id, users.full_name, users.role, sessions.id AS session_id,
            users.totp_since IS NOT NULL AS has_totp {_MAY_CALL}
            AND users.id = ANY(CAST(:caller_ids AS bigint[])) AND sessions.id = ANY(CAST(:session_ids AS uuid[]))
    )
"""
# Scopes are joined to a text: arrays of different lengths cannot be gathered in one array.
_WITH_KEYS = f"""
    key_callers AS MATERIALIZED (
        SELECT users.id, users.full_name, users.role, api_keys.id AS key_id, api_keys.hash,
            array_to_string(api_keys.scopes, ' ') AS scopes, users.totp_since IS NOT NULL AS has_totp
            {_MAY_CALL_WITH_KEY} AND api_keys.hash = ANY(CAST(:hashes AS bytea[]))
    )
"""
_OF_SIGNED_IN = ("id", "full_name", "role", "session_id", "has_totp")
_OF_KEYS = ("id", "full_name", "role", "key_id", "hash", "scopes", "has_totp")
_CALLERS = Reading(_SIGNED_IN, results={"callers": _OF_SIGNED_IN})
_KEY_CALLERS = Reading(_WITH_KEYS, results={"key_callers": _OF_KEYS})
_ALL_CALLERS = Reading(f"{_SIGNED_IN}, {_WITH_KEYS}", results={"callers": _OF_SIGNED_IN, "key_callers": _OF_KEYS})


def _signed_in(
    require_totp: bool, callers: Sequence[Sequence[Any]], of_keys: Sequence[Sequence[Any]]
) -> dict[Credential, SignedIn]:
    found: dict[Credential, SignedIn] = {
        Presented(user_id, session_id): _caller(user_id, full_name, role, session_id, has_totp, require_totp)
        for user_id, full_name, role, session_id, has_totp in callers
    }
    for user_id, full_name, role, key_id, hashed, scopes, has_totp in of_keys:
        found[PresentedKey(user_id, hashed)] = _with_key(
            user_id, full_name, role, key_id, scopes.split(), has_totp, require_totp
        )
    return found


def _caller(user_id: int, full_name: str, role: str, session_id: UUID, has_totp: bool, require_totp: bool) -> SignedIn:
    limited = _is_limited(role, has_totp, require_totp)
    return SignedIn(user_id, full_name, Role(role), session_id, limited=limited)


def _with_key(
    user_id: int, full_name: str, role: str, key_id: UUID, scopes: list[str], has_totp: bool, require_totp: bool
) -> SignedIn:
    limited = _is_limited(role, has_totp, require_totp)
    return SignedIn(user_id, full_name, Role(role), key_id=key_id, scopes=frozenset(scopes), limited=limited)


def _is_limited(role: str, has_totp: bool, require_totp: bool) -> bool:
    return require_totp and not has_totp and Role(role).is_staff
