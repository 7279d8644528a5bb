"""HTTP routes for users."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import SecretStr

from services.api.attempts import confirm_password
from services.api.dependencies import CurrentUser, IfMatch, ReplicaWork, State, Work, etag, page_of
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rights import needs, public
from services.api.state import ApiState
from services.api.transaction import TransactionRoute
from services.errors import Fault, InvalidInput
from services.fields import Id
from services.query import Page, PageQuery, Rows
from services.unit_of_work import UnitOfWork
from services.users import service
from services.users.models import User
from services.users.repository import USERS, SignedIn
from services.users.rights import Scope
from services.users.roles.models import RoleRequest
from services.users.roles.routes import shown
from services.users.roles.schemas import RoleRequestPublic
from services.users.roles.service import RoleRules
from services.users.schemas import Confirmation, UserAdminUpdate, UserCreate, UserPublic, UserUpdate

router = APIRouter(route_class=TransactionRoute, tags=["users"])


@router.post("/users", status_code=201, response_model=UserPublic, responses=responses(400, 409, 413, 422))
@public
async def register(wanted: UserCreate, response: Response, uow: Work, state: State) -> User:
    """Register. The new user gets an account without credits."""
    user = await service.register(uow, state.passwords, wanted)
    response.headers["Location"] = "/v1/users/me"
    response.headers["ETag"] = etag(user.version)
    return user


@router.get("/users/me", response_model=UserPublic, responses=responses(401))
@needs(Scope.profile_read)
async def read_self(caller: CurrentUser, response: Response, uow: Work) -> User:
    """Get the signed-in user."""
    user = await service.get(uow, caller.id)
    response.headers["ETag"] = etag(user.version)
    return user


@router.patch("/users/me", response_model=UserPublic, responses=responses(400, 401, 403, 409, 412, 413, 422, 428, 429))
@needs(Scope.profile_write)
async def update_self(
    request: Request,
    changes: UserUpdate,
    user: CurrentUser,
    version: IfMatch,
    response: Response,
    uow: Work,
    state: State,
) -> User:
    """Change the signed-in user's name, e-mail address or password. A new password ends all other sessions."""
    if await service.needs_confirmation(uow, user.id, changes):
        await _confirm(request, user, changes.current_password, uow, state)
    updated = await service.update_self(uow, state.passwords, user, changes, version)
    response.headers["ETag"] = etag(updated.version)
    return updated


@router.delete("/users/me", status_code=204, responses=responses(400, 401, 403, 409, 413, 422, 429))
@needs(Scope.profile_write)
async def delete_self(request: Request, given: Confirmation, user: CurrentUser, uow: Work, state: State) -> None:
    """Delete the signed-in user, who confirms it with their password. Their orders and credits stay on the books."""
    await _confirm(request, user, given.current_password, uow, state)
    await service.delete(uow, user.id)


async def _confirm(
    request: Request, user: SignedIn, password: SecretStr | None, uow: UnitOfWork, state: ApiState
) -> None:
    if password is None:
        fault = Fault("Field required", "#/current_password")
        raise InvalidInput("current_password is required to change the password or the e-mail address", [fault])
    await confirm_password(request, user.id, password, uow, state)


@router.get("/users", response_model=Page[UserPublic], responses=responses(400, 401, 403, 422))
@needs(Scope.users_read)
async def list_users(_: CurrentUser, page: Annotated[PageQuery, page_of(USERS)], uow: ReplicaWork) -> Rows[User]:
    """List users."""
    return await uow.users.list_page(USERS, page)


@router.get("/users/{user_id}", response_model=UserPublic, responses=responses(401, 403, 404, 422))
@needs(Scope.users_read)
async def read_user(user_id: Id, _: CurrentUser, response: Response, uow: Work) -> User:
    """Get a user."""
    user = await service.get(uow, user_id)
    response.headers["ETag"] = etag(user.version)
    return user


@router.patch(
    "/users/{user_id}",
    response_model=UserPublic,
    responses=responses(400, 401, 403, 404, 409, 412, 413, 422, 428)
    | {202: {"model": RoleRequestPublic, "description": "The role waits for the approval of another admin."}},
)
@needs(Scope.users_write)
async def update_user(
    user_id: Id,
    changes: UserAdminUpdate,
    caller: CurrentUser,
    version: IfMatch,
    response: Response,
    uow: Work,
    state: State,
) -> User | Response:
    """Change a user's name or e-mail address, or whether they may sign in; with `roles:write`, also the role.

    The e-mail address of staff, and users who may do more than the caller, need `roles:write` as well. Outside
    development, a role waits until another admin approves it (202), and nobody changes the address of staff for them.
    """
    user = await service.update_other(uow, caller, user_id, changes, version, RoleRules.of(state.settings))
    if isinstance(user, RoleRequest):
        headers = {"Location": f"/v1/role-requests/{user.id}"}
        return Response(shown(user).model_dump_json(), 202, headers, "application/json")
    response.headers["ETag"] = etag(user.version)
    return user


@router.delete("/users/{user_id}", status_code=204, responses=responses(401, 403, 404, 409, 422))
@needs(Scope.users_write)
async def delete_user(user_id: Id, caller: CurrentUser, uow: Work) -> None:
    """Delete a user, so that `restore` can bring them back."""
    await service.delete_other(uow, caller, user_id)


@router.post(
    "/users/{user_id}/restore",
    response_model=UserPublic,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422),
)
@needs(Scope.users_write)
async def restore_user(user_id: Id, caller: CurrentUser, uow: Work, state: State) -> User:
    """Restore a deleted user. Outside development, a member of the staff comes back as a customer."""
    return await service.restore(uow, caller, user_id, RoleRules.of(state.settings))
