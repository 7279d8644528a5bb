"""The table of requests for another role."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, text
from sqlmodel import Field, SQLModel

from services.fields import TIMESTAMPTZ, allowed, new_id, now, text_enum
from services.users.rights import Role


class RequestState(StrEnum):
    """A pending request waits for a second admin, until it expires."""

    pending = "pending"
    approved = "approved"
    rejected = "rejected"
    expired = "expired"


class RoleRequestBase(SQLModel):
    """The role that a user is to have."""

    user_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    role: Role = Field(sa_type=text_enum(Role))


class RoleRequest(RoleRequestBase, table=True):
    """An admin's request that a user get another role. Another admin decides on it, neither of them for themselves.

    One that no one has decided on is stored as pending after its time, too, until another one is made for the user.
    """

    __tablename__ = "role_requests"
    __table_args__ = (
        CheckConstraint(allowed("role", Role), name="role"),
        CheckConstraint(allowed("state", RequestState), name="state"),
        CheckConstraint("requested_by <> user_id", name="of_another"),
        CheckConstraint("decided_by <> requested_by AND decided_by <> user_id", name="second_admin"),
        CheckConstraint("(decided_by IS NULL) = (state = ANY ('{pending,expired}'::text[]))", name="decided_by"),
        CheckConstraint("(decided_at IS NULL) = (state = 'pending')", name="decided"),
        Index("uq_role_requests_pending", "user_id", unique=True, postgresql_where=text("state = 'pending'")),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    state: RequestState = Field(default=RequestState.pending, sa_type=text_enum(RequestState))
    requested_by: int = Field(foreign_key="users.id", sa_type=BigInteger)
    decided_by: int | None = Field(default=None, foreign_key="users.id", sa_type=BigInteger)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    expires_at: datetime = Field(sa_type=TIMESTAMPTZ)
    decided_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)

    @property
    def state_now(self) -> RequestState:
        """The state, which is `expired` as soon as the time of a pending request has passed."""
        if self.state is RequestState.pending and self.expires_at <= now():
            return RequestState.expired
        return self.state
