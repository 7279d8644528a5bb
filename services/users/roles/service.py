"""Who may approve what others request, and changes of roles, which a second admin approves."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.acting import Action
from services.errors import (
    ApproverTooNew,
    Conflict,
    NotFound,
    OwnRequest,
    OwnRole,
    RoleRequestDecided,
    RoleRequestExpired,
    RoleRequestPending,
)
from services.fields import now
from services.repository import Lock
from services.settings import Settings
from services.sql import unless_taken
from services.unit_of_work import UnitOfWork
from services.users.models import Caller, User
from services.users.rights import KEPT, Role
from services.users.roles.models import RequestState, RoleRequest, RoleRequestBase


@dataclass(frozen=True, slots=True)
class RoleRules:
    """How roles change. If `alone`, one admin decides; otherwise a second one must approve within `lasts`."""

    alone: bool
    lasts: timedelta
    tenure: timedelta
    """How long the second admin must have been one."""

    @classmethod
    def of(cls, settings: Settings) -> "RoleRules":
        return cls(
            settings.is_development,
            timedelta(seconds=settings.role_request_ttl),
            timedelta(seconds=settings.tenure_of_approvers),
        )


async def check_tenure(uow: UnitOfWork, approver: Caller, tenure: timedelta) -> None:
    """Raises `ApproverTooNew` if the caller has not had their role for this long, by the database's clock."""
    from_then = await uow.users.too_new_until(approver.id, tenure)
    if from_then is not None:
        raise ApproverTooNew(
            f"you have had the role {approver.role.value} for too short a time to approve; you may do so from "
            f"{from_then.isoformat(timespec='seconds')}, and another {approver.role.value} may do so now"
        )


async def keep_one_of_each(uow: UnitOfWork, leaving: int) -> None:
    """Raise `Conflict` if this user is the last operator or admin. Locks them all: two cannot leave together."""
    for role, users in (await uow.users.lock_with(KEPT)).items():
        if users == [leaving]:
            raise Conflict(f"this is the last {role.value}; give another user the role {role.value} first")


async def change(uow: UnitOfWork, user: User, role: Role) -> None:
    """Give the user this role. Raises `Conflict` for the last operator or admin."""
    if user.role is not role:
        if user.role in KEPT:
            await keep_one_of_each(uow, user.id)
        uow.record_act(Action.role_changed, f"user/{user.id}", was=user.role.value, now=role.value)
        await uow.users.update(user, role=role)


async def ask(uow: UnitOfWork, admin: Caller, user: User, role: Role, rules: RoleRules) -> RoleRequest:
    """Leave it to a second admin whether the user gets this role.

    Raises `OwnRole`, or `RoleRequestPending` if another request for the user waits.
    """
    if user.id == admin.id:
        raise OwnRole("you cannot change your own role; another admin must request it")
    await uow.role_requests.expire(user.id)
    waits = RoleRequestPending(
        f"a request for another role of user {user.id} is already waiting; approve or reject it first"
    )
    with unless_taken("uq_role_requests_pending", waits):
        request = await uow.role_requests.create(
            RoleRequestBase(user_id=user.id, role=role), requested_by=admin.id, expires_at=now() + rules.lasts
        )
    _record(uow, Action.role_requested, request)
    return request


async def get(uow: UnitOfWork, request_id: UUID) -> RoleRequest:
    """The request. Raises `NotFound`."""
    return _known(await uow.role_requests.get(request_id), request_id)


async def approve(uow: UnitOfWork, admin: Caller, request_id: UUID, rules: RoleRules) -> RoleRequest:
    """Give the user the role. Of several concurrent decisions, the first one counts.

    Raises `OwnRequest` for the admin who requested it, `OwnRole` for the one whose role it is, `ApproverTooNew`,
    `RoleRequestDecided`, `RoleRequestExpired`, `NotFound` if the user was deleted, and `Conflict` for the last operator
    or admin.
    """
    request = await _undecided(uow, admin, request_id)
    await check_tenure(uow, admin, rules.tenure)
    user = await uow.users.get(request.user_id)
    if user is None:
        raise NotFound(f"user {request.user_id} has been deleted; reject the request")
    await change(uow, user, request.role)
    await uow.role_requests.update(request, state=RequestState.approved, decided_by=admin.id, decided_at=now())
    _record(uow, Action.role_approved, request)
    return request


async def reject(uow: UnitOfWork, admin: Caller, request_id: UUID) -> RoleRequest:
    """Leave the user's role as it is. Raises what `approve` does, except about the tenure and the user."""
    request = await _undecided(uow, admin, request_id)
    await uow.role_requests.update(request, state=RequestState.rejected, decided_by=admin.id, decided_at=now())
    _record(uow, Action.role_rejected, request)
    return request


def _record(uow: UnitOfWork, action: Action, request: RoleRequest) -> None:
    uow.record_act(action, f"role_request/{request.id}", user=f"user/{request.user_id}", role=request.role.value)


async def _undecided(uow: UnitOfWork, admin: Caller, request_id: UUID) -> RoleRequest:
    request = _known(await uow.role_requests.get(request_id, lock=Lock.change), request_id)
    if request.requested_by == admin.id:
        raise OwnRequest("you requested this role; another admin must decide on it")
    if request.user_id == admin.id:
        raise OwnRole("this is your own role; another admin must decide on it")
    match request.state_now:
        case RequestState.approved | RequestState.rejected as state:
            raise RoleRequestDecided(f"the request is already {state.value}")
        case RequestState.expired:
            raise RoleRequestExpired(f"the request expired at {request.expires_at}; request the role again")
    return request


def _known(request: RoleRequest | None, request_id: UUID) -> RoleRequest:
    if request is None:
        raise NotFound(f"there is no role request {request_id}")
    return request
