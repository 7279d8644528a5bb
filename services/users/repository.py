"""All SQL about users."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func
from sqlmodel import col, select

from services.fields import Id, Instant, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable
from services.query import Listing, Sortable
from services.repository import SoftDeleteRepository
from services.sql import Read, Reading, Results, Statement
from services.users.models import Presented, User
from services.users.rights import SCOPES, Role, Scope


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An active user, as every request reads it: one light statement, no mapped object."""

    id: int
    full_name: str
    role: Role
    session_id: UUID

    @property
    def actor(self) -> str:
        return f"user:{self.id}"

    def may(self, scope: Scope) -> bool:
        return scope in SCOPES[self.role]


class UserRepository(SoftDeleteRepository[User]):
    model = User

    async def signed_in(self, caller: Presented) -> SignedIn | None:
        """The user if they may still use their token."""
        for row in await self.sql.fetch(_CALLER, user_id=caller.user_id, session_id=caller.session_id):
            return SignedIn(row["id"], row["full_name"], Role(row["role"]), caller.session_id)
        return None

    @staticmethod
    def all_signed_in(callers: Sequence[Presented]) -> Read[dict[Presented, SignedIn]]:
        """Those who may still use their tokens, as a part of a longer read."""
        parameters = {
            "caller_ids": [caller.user_id for caller in callers],
            "session_ids": [caller.session_id for caller in callers],
        }
        return Read(_CALLERS, parameters, _signed_in)

    async def lock_with(self, roles: Sequence[Role]) -> dict[Role, list[int]]:
        """The ids of all active users with each of these roles, locked until the transaction ends."""
        found: dict[Role, list[int]] = {role: [] for role in roles}
        for row in await self.sql.fetch(_LOCK_WITH, roles=[role.value for role in roles]):
            found[Role(row["role"])].append(row["id"])
        return found

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
        "created_at": Sortable(col(User.created_at), Instant),
        "email": Sortable(col(User.email), Text),
    },
    key=_ID,
    default="id",
)

_LOCK_WITH = Statement("""
    SELECT id, role FROM users
    WHERE role = ANY(CAST(:roles AS text[])) AND is_active AND deleted_at IS NULL ORDER BY id FOR NO KEY UPDATE
""")

_MAY_CALL = """
    FROM sessions JOIN users ON users.id = sessions.user_id
    WHERE sessions.ended_at IS NULL AND sessions.expires_at > now() AND users.is_active AND users.deleted_at IS NULL
"""
"""Users and sessions whose tokens are valid. Every look-up of a caller uses it."""

_CALLER = Statement(f"""
    SELECT users.id, users.full_name, users.role {_MAY_CALL} AND users.id = :user_id AND sessions.id = :session_id
""")

_REPLACE_HASH = Statement("""
    UPDATE users SET hashed_password = :hashed WHERE id = :user_id AND hashed_password = :verified
""")

_CALLERS = Reading(
    f"""
    callers AS MATERIALIZED (
        SELECT users.id, users.full_name, users.role, sessions.id AS session_id {_MAY_CALL}
            AND users.id = ANY(CAST(:caller_ids AS bigint[])) AND sessions.id = ANY(CAST(:session_ids AS uuid[]))
    )
    """,
    results={"callers": ("id", "full_name", "role", "session_id")},
)


def _signed_in(results: Results) -> dict[Presented, SignedIn]:
    (callers,) = results
    return {
        Presented(user_id, session_id): SignedIn(user_id, full_name, Role(role), session_id)
        for user_id, full_name, role, session_id in callers
    }
