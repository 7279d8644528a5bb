"""What goes out about requests for another role."""

from datetime import datetime
from uuid import UUID

from services.fields import Schema
from services.users.roles.models import RequestState, RoleRequestBase


class RoleRequestPublic(RoleRequestBase, Schema):
    """A request that a user get another role. `decided_by` is the second admin."""

    id: UUID
    state: RequestState
    requested_by: int
    decided_by: int | None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
