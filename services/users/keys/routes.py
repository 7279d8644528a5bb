"""HTTP routes for API keys."""

from datetime import timedelta
from uuid import UUID

from fastapi import APIRouter, Request, Response

from services.api.attempts import confirm_password
from services.api.dependencies import CurrentUser, State, Work
from services.api.headers import located
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.errors import WrongPassword
from services.fields import Id, picked
from services.users.keys import service
from services.users.keys.models import ApiKey
from services.users.keys.schemas import ApiKeyCreate, ApiKeyIssued, ApiKeyPublic, ApiKeys, OwnRotation, Rotation
from services.users.keys.service import Issued, KeyLimits
from services.users.rights import Scope

# None of them takes an Idempotency-Key: a stored reply would contain the key.
router = APIRouter(route_class=TransactionRoute, tags=["API keys"])


@router.post(
    "/api-keys",
    status_code=201,
    response_model=ApiKeyIssued,
    responses=responses(400, 401, 403, 409, 413, 422, 429, 503, WrongPassword) | located(201),
)
@needs(Scope.keys_write)
async def make_key(
    request: Request, wanted: ApiKeyCreate, owner: CurrentUser, response: Response, uow: Work, state: State
) -> ApiKeyIssued:
    """Make an API key for a program of the caller. The key is shown only in this reply."""
    await confirm_password(request, owner.id, wanted.current_password, uow)
    return _shown(await service.make(uow, owner, wanted, KeyLimits.of(state.settings)), response)


@router.get("/api-keys", responses=responses(401, 403))
@needs(Scope.keys_read)
async def list_keys(owner: CurrentUser, uow: Work) -> ApiKeys:
    """List the caller's API keys that can be used, the newest first."""
    return _public(await uow.api_keys.of_user(owner.id))


@router.post(
    "/api-keys/current/rotate",
    status_code=201,
    response_model=ApiKeyIssued,
    responses=responses(400, 401, 403, 404, 409, 413, 422) | located(201),
)
@needs(Scope.keys_rotate)
async def rotate_current_key(
    owner: CurrentUser, response: Response, uow: Work, state: State, wanted: OwnRotation | None = None
) -> ApiKeyIssued:
    """Replace the API key that makes the request. The old one can still be used for the overlap, a day by default."""
    overlap = timedelta(seconds=(wanted or OwnRotation()).overlap)
    return _shown(await service.rotate_current(uow, owner, overlap, KeyLimits.of(state.settings)), response)


@router.get("/api-keys/{key_id}", response_model=ApiKeyPublic, responses=responses(401, 403, 404, 422))
@needs(Scope.keys_read)
async def read_key(key_id: UUID, owner: CurrentUser, uow: Work) -> ApiKey:
    """Get one of the caller's API keys that can be used, without the key itself."""
    return await service.find(uow, owner.id, key_id)


@router.post(
    "/api-keys/{key_id}/rotate",
    status_code=201,
    response_model=ApiKeyIssued,
    responses=responses(400, 401, 403, 404, 409, 413, 422, 429, 503, WrongPassword) | located(201),
)
@needs(Scope.keys_write)
async def rotate_key(
    key_id: UUID, request: Request, wanted: Rotation, owner: CurrentUser, response: Response, uow: Work, state: State
) -> ApiKeyIssued:
    """Replace one of the caller's API keys. The old one can still be used for the overlap, a day by default."""
    await confirm_password(request, owner.id, wanted.current_password, uow)
    overlap = timedelta(seconds=wanted.overlap)
    return _shown(await service.rotate(uow, owner.id, key_id, overlap, KeyLimits.of(state.settings)), response)


@router.delete("/api-keys/{key_id}", status_code=204, responses=responses(401, 403, 404, 422))
@needs(Scope.keys_write)
async def revoke_key(key_id: UUID, owner: CurrentUser, uow: Work) -> None:
    """Revoke one of the caller's API keys. It is invalid at once."""
    await service.revoke(uow, owner.id, key_id)


@router.get("/users/{user_id}/api-keys", responses=responses(401, 403, 404, 422))
@needs(Scope.keys_manage)
async def list_keys_of_user(user_id: Id, _: CurrentUser, uow: Work) -> ApiKeys:
    """List the API keys of any user that can be used, the newest first."""
    return _public(await service.of_user(uow, user_id))


@router.delete("/users/{user_id}/api-keys/{key_id}", status_code=204, responses=responses(401, 403, 404, 422))
@needs(Scope.keys_manage)
async def revoke_key_of_user(user_id: Id, key_id: UUID, _: CurrentUser, uow: Work) -> None:
    """Revoke an API key of any user. It is invalid at once."""
    await service.revoke(uow, user_id, key_id)


def _shown(issued: Issued, response: Response) -> ApiKeyIssued:
    response.headers["Location"] = f"/v1/api-keys/{issued.row.id}"
    return ApiKeyIssued(**picked(issued.row, ApiKeyPublic.model_fields), key=issued.secret)


def _public(rows: list[ApiKey]) -> ApiKeys:
    return ApiKeys(data=[ApiKeyPublic(**picked(row, ApiKeyPublic.model_fields)) for row in rows])
