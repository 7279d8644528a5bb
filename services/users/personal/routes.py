"""HTTP routes for personal data."""

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.attachments import attachment
from services.api.attempts import confirm_password
from services.api.dependencies import CurrentUser, State, Work
from services.api.problems import responses
from services.api.rights import needs
from services.api.state import ApiState
from services.api.transaction import TransactionRoute, ahead
from services.errors import ErasureBlocked, WrongPassword
from services.exports import Format, documented
from services.fields import Id
from services.unit_of_work import UnitOfWork
from services.users.personal import service
from services.users.rights import Scope
from services.users.schemas import Confirmation

router = APIRouter(route_class=TransactionRoute, tags=["users"])

_ERASING = responses(400, 401, 403, 409, 413, 422, 429, 503, ErasureBlocked, WrongPassword)


@router.get(
    "/users/me/personal-data.ndjson",
    response_class=StreamingResponse,
    responses={**documented(Format.ndjson), **responses(401, 403)},
)
@needs(Scope.profile_read)
async def export_own_data(request: Request, user: CurrentUser, uow: Work, state: State) -> StreamingResponse:
    """Export everything that is stored about the caller, as one JSON object a line. The export is recorded.

    `part` says what a line is about, such as `orders` or `sessions`.
    """
    return await _export(request, user.id, uow, state)


@router.get(
    "/users/{user_id}/personal-data.ndjson",
    response_class=StreamingResponse,
    responses={**documented(Format.ndjson), **responses(401, 403, 404, 422)},
)
@needs(Scope.users_personal)
async def export_data_of_user(
    user_id: Id, request: Request, _: CurrentUser, uow: Work, state: State
) -> StreamingResponse:
    """Export everything that is stored about a user, for that user. The export is recorded."""
    return await _export(request, await service.find(uow, user_id), uow, state)


async def _export(request: Request, user_id: int, uow: UnitOfWork, state: ApiState) -> StreamingResponse:
    account_id = await uow.personal.account_id(user_id)
    # The connection goes back to the pool: the export takes one only briefly for each piece.
    await uow.rollback()
    async with ahead(request) as recording:
        recording.record_act(Action.exported, f"user/{user_id}")
    position = await state.reads.position()
    pieces = service.export(lambda read: state.reads.run(read, position), user_id, account_id)
    return await attachment(pieces, f"user-{user_id}", Format.ndjson)


@router.delete("/users/me/personal-data", status_code=204, responses=_ERASING)
@needs(Scope.profile_write)
async def erase_self(request: Request, given: Confirmation, user: CurrentUser, uow: Work) -> None:
    """Erase the caller's name, e-mail address and whatever else identifies them, permanently. The books stay.

    The caller confirms it with their password. 409 says what must be done first: no credits may be left, and no order
    may be open.
    """
    await confirm_password(request, user.id, given.current_password, uow)
    await service.erase(uow, user.id)


@router.delete("/users/{user_id}/personal-data", status_code=204, responses=responses(404) | _ERASING)
@needs(Scope.users_personal)
async def erase_user(request: Request, user_id: Id, given: Confirmation, caller: CurrentUser, uow: Work) -> None:
    """Erase a user, even a deleted one, as the user could. The caller confirms it with their own password."""
    await confirm_password(request, caller.id, given.current_password, uow)
    await service.erase_other(uow, caller, user_id)
