"""HTTP routes for requests for another role, on which a second admin decides."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, State, Work, page_of
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.errors import ApproverTooNew, OwnRequest, OwnRole, RoleRequestDecided, RoleRequestExpired
from services.query import Page, PageQuery
from services.users.rights import Scope
from services.users.roles import service
from services.users.roles.models import RoleRequest
from services.users.roles.repository import ROLE_REQUESTS
from services.users.roles.schemas import RoleRequestPublic
from services.users.roles.service import RoleRules

router = APIRouter(route_class=TransactionRoute, tags=["users"])

_DECIDING = (OwnRequest, OwnRole, RoleRequestDecided, RoleRequestExpired)
"""How a decision may be refused."""


@router.get("/role-requests", responses=responses(400, 401, 403, 422))
@needs(Scope.audit_read)
async def list_role_requests(
    _: CurrentUser, page: Annotated[PageQuery, page_of(ROLE_REQUESTS)], uow: Work
) -> Page[RoleRequestPublic]:
    """List the requests for another role, newest first."""
    return (await uow.role_requests.list_page(ROLE_REQUESTS, page)).shown(shown)


@router.get("/role-requests/{request_id}", responses=responses(401, 403, 404, 422))
@needs(Scope.audit_read)
async def read_role_request(request_id: UUID, _: CurrentUser, uow: Work) -> RoleRequestPublic:
    """Get a request for another role."""
    return shown(await service.get(uow, request_id))


@router.post(
    "/role-requests/{request_id}/approve",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422, ApproverTooNew, *_DECIDING),
)
@needs(Scope.roles_write)
async def approve_role_request(request_id: UUID, admin: CurrentUser, uow: Work, state: State) -> RoleRequestPublic:
    """Give the user the role that another admin requested."""
    return shown(await service.approve(uow, admin, request_id, RoleRules.of(state.settings)))


@router.post(
    "/role-requests/{request_id}/reject",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 422, *_DECIDING),
)
@needs(Scope.roles_write)
async def reject_role_request(request_id: UUID, admin: CurrentUser, uow: Work) -> RoleRequestPublic:
    """Reject a role that another admin requested."""
    return shown(await service.reject(uow, admin, request_id))


def shown(request: RoleRequest) -> RoleRequestPublic:
    """The request as it is shown."""
    return RoleRequestPublic(**request.model_dump(exclude={"state"}), state=request.state_now)
