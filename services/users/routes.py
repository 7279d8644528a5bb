"""HTTP routes for users."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr

from services.api.attempts import confirm_password, counted
from services.api.dependencies import CurrentUser, Device, IfMatch, ReplicaWork, State, Work, etag, page_of
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs, public
from services.api.state import ApiState
from services.api.transaction import TransactionRoute, ahead
from services.errors import (
    AlreadyExists,
    Fault,
    InvalidInput,
    OwnRole,
    RoleAlone,
    RoleRequestPending,
    StaffAddress,
    TokenInvalid,
    WrongPassword,
)
from services.fields import Id
from services.mail import sender_of
from services.query import Page, PageQuery, Rows
from services.users import service
from services.users.attempts import service as attempts
from services.users.models import User
from services.users.registration import service as registration
from services.users.registration.schemas import EmailConfirmation
from services.users.repository import USERS, WITHOUT_PASSWORD
from services.users.rights import Scope
from services.users.roles.models import RoleRequest
from services.users.roles.routes import shown
from services.users.roles.schemas import RoleRequestPublic
from services.users.roles.service import RoleRules
from services.users.schemas import Confirmation, UserAdminUpdate, UserCreate, UserPublic, UserUpdate
from services.users.sessions import models

router = APIRouter(route_class=TransactionRoute, tags=["users"])

_MAILED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "A mail with further instructions was sent",
        "content": {"application/json": {"schema": {"type": "null"}}},
    }
}

_OF_ROLES = (OwnRole, RoleAlone, StaffAddress)
"""How a change of a user may be refused because of their role."""


@router.post(
    "/users",
    status_code=201,
    response_model=UserPublic,
    responses=responses(400, 413, 422, 429, 503, AlreadyExists) | located(201) | _MAILED,
)
@public
@rate_class(RateClass.sign_in)
async def register(
    request: Request, wanted: UserCreate, device: Device, response: Response, uow: Work, state: State
) -> User | Response:
    """Register. The new user gets an account without credits.

    If addresses are verified, a token is mailed, with which the registration is finished. The reply is the same for
    an address that is taken.
    """
    if state.settings.verifies_email:
        state.passwords.check_new(wanted.password.get_secret_value(), wanted.email, wanted.full_name)
        await _count_mail(request, wanted.email, device, state)
        await registration.ask(uow, state.passwords, wanted, _verified_within(state))
        return JSONResponse(None, 202)
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


@router.patch(
    "/users/me",
    response_model=UserPublic,
    responses=responses(400, 401, 403, 412, 413, 422, 428, 429, 503, AlreadyExists, WrongPassword),
)
@needs(Scope.profile_write)
async def update_self(
    request: Request,
    changes: UserUpdate,
    user: CurrentUser,
    version: IfMatch,
    device: Device,
    response: Response,
    uow: Work,
    state: State,
) -> User:
    """Change the signed-in user's name, e-mail address or password. A new password ends all other sessions.

    If addresses are verified, another one counts once it is confirmed with the token that is mailed to it.
    """
    if await service.needs_confirmation(uow, user.id, changes):
        await confirm_password(request, user.id, _given(changes.current_password), uow)
    verified_within = _verified_within(state) if state.settings.verifies_email else None
    if (
        verified_within is not None
        and changes.email is not None
        and await service.wants_other_address(uow, user.id, changes)
    ):
        # Only one connection at a time.
        await uow.rollback()
        await _count_mail(request, changes.email, device, state)
    updated = await service.update_self(uow, state.passwords, user, changes, version, verified_within=verified_within)
    response.headers["ETag"] = etag(updated.version)
    return updated


@router.post(
    "/email-verifications/confirm",
    response_model=UserPublic,
    responses=responses(400, 413, 422, 429, 503, AlreadyExists, TokenInvalid, WrongPassword),
)
@public
@rate_class(RateClass.sign_in)
async def confirm_email(
    request: Request, given: EmailConfirmation, response: Response, uow: Work, state: State
) -> User:
    """Confirm an e-mail address with the token from the mail, which works once, and the password that belongs to it.

    This finishes a registration, or gives the signed-in user who asked for it the new address.
    """
    found = await registration.find(uow, given)
    await uow.rollback()
    async with counted(
        request, lambda counting, limits: attempts.take_verification(counting, limits, found["id"])
    ) as attempt:
        user = await registration.confirm(uow, state.passwords, given)
    await attempts.forgive(uow, attempt)
    response.headers["ETag"] = etag(user.version)
    return user


def _verified_within(state: ApiState) -> timedelta:
    return timedelta(seconds=state.settings.email_verification_ttl)


async def _count_mail(request: Request, email: str, device: models.Device, state: ApiState) -> None:
    """Count a mail to this address, and commit that before the password is hashed."""
    async with ahead(request) as counting:
        await attempts.take_mail(counting, attempts.Limits.of(state.settings), email, device.address)


@router.delete("/users/me", status_code=204, responses=responses(400, 401, 403, 409, 413, 422, 429, 503, WrongPassword))
@needs(Scope.profile_write)
async def delete_self(request: Request, given: Confirmation, user: CurrentUser, uow: Work) -> None:
    """Delete the signed-in user, who confirms it with their password. Their orders and credits stay on the books."""
    await confirm_password(request, user.id, given.current_password, uow)
    await service.delete(uow, user.id)


def _given(password: SecretStr | None) -> SecretStr:
    if password is None:
        fault = Fault("Field required", "#/current_password")
        raise InvalidInput("current_password is required to change the password or the e-mail address", [fault])
    return password


@router.get("/users", response_model=Page[UserPublic], responses=responses(400, 401, 403, 422))
@needs(Scope.users_read)
@rate_class(RateClass.search)
async def list_users(_: CurrentUser, page: Annotated[PageQuery, page_of(USERS)], uow: ReplicaWork) -> Rows[User]:
    """List users."""
    return await uow.users.list_page(USERS, page, options=[WITHOUT_PASSWORD])


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
    responses=responses(400, 401, 403, 404, 409, 412, 413, 422, 428, AlreadyExists, RoleRequestPending, *_OF_ROLES)
    | {
        202: {
            "model": RoleRequestPublic,
            "description": "The role waits for the approval of another admin.",
            **located(202)[202],
        }
    },
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
    development, a role waits until another admin approves it (202), and no one changes the address of staff for them.
    If mail is on, the former address is told that there is another one.
    """
    rules, sends_mail = RoleRules.of(state.settings), sender_of(state.settings) is not None
    user = await service.update_other(uow, caller, user_id, changes, version, rules, sends_mail=sends_mail)
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
    responses=responses(400, 401, 403, 404, 422, AlreadyExists),
)
@needs(Scope.users_write)
async def restore_user(user_id: Id, caller: CurrentUser, response: Response, uow: Work, state: State) -> User:
    """Restore a deleted user. Outside development, a member of the staff comes back as a customer."""
    user = await service.restore(uow, caller, user_id, RoleRules.of(state.settings))
    response.headers["ETag"] = etag(user.version)
    return user
