"""All SQL about users."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import col, select

from services.fields import Id, Instant, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable
from services.query import Listing, Sortable
from services.repository import SoftDeleteRepository
from services.sql import Read, Reading, Results, Statement
from services.users.models import Role, User


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An active user, as every request reads it: one light statement, no mapped object."""

    id: int
    full_name: str
    role: Role


class UserRepository(SoftDeleteRepository[User]):
    model = User

    async def signed_in(self, user_id: int) -> SignedIn | None:
        """The user if they may still use their token."""
        rows = await self.sql.fetch(_CALLER, id=user_id)
        return SignedIn(rows[0]["id"], rows[0]["full_name"], Role(rows[0]["role"])) if rows else None

    @staticmethod
    def all_signed_in(user_ids: Sequence[int]) -> Read[dict[int, SignedIn]]:
        """Those of the users who may still use their tokens, by id, as a part of a longer read."""
        return Read(_CALLERS, {"caller_ids": list(user_ids)}, _signed_in)

    async def lock_operators(self) -> list[int]:
        """The ids of all active operators, locked until the transaction ends."""
        return [row["id"] for row in await self.sql.fetch(_LOCK_OPERATORS)]

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

_LOCK_OPERATORS = Statement("""
    SELECT id FROM users WHERE role = 'operator' AND is_active AND deleted_at IS NULL ORDER BY id FOR NO KEY UPDATE
""")

_CALLER = Statement("""
    SELECT id, full_name, role FROM users WHERE id = :id AND is_active AND deleted_at IS NULL
""")

_CALLERS = Reading(
    """
    callers AS MATERIALIZED (
        SELECT id, full_name, role FROM users
        WHERE id = ANY(CAST(:caller_ids AS bigint[])) AND is_active AND deleted_at IS NULL
    )
    """,
    results={"callers": ("id", "full_name", "role")},
)


def _signed_in(results: Results) -> dict[int, SignedIn]:
    (callers,) = results
    return {user_id: SignedIn(user_id, full_name, Role(role)) for user_id, full_name, role in callers}
