"""All SQL about requests for another role."""

from uuid import UUID

from sqlmodel import col

from services.query import Listing, Sortable
from services.repository import Repository
from services.sql import Statement
from services.users.roles.models import RoleRequest

_ID = Sortable(col(RoleRequest.id), UUID)

ROLE_REQUESTS = Listing[RoleRequest](filters={}, sorts={"id": _ID}, key=_ID, default="-id")


class RoleRequestRepository(Repository[RoleRequest]):
    """Requests for another role."""

    model = RoleRequest

    async def expire(self, user_id: int) -> None:
        """End the user's pending request if its time has passed."""
        await self.sql.run(_EXPIRE, user_id=user_id)


_EXPIRE = Statement("""
    UPDATE role_requests SET state = 'expired', decided_at = statement_timestamp()
    WHERE user_id = :user_id AND state = 'pending' AND expires_at <= statement_timestamp()
""")
