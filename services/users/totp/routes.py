"""HTTP routes for the caller's second factor."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request, Response
from pydantic import SecretStr

from services.api.attempts import counted
from services.api.dependencies import CurrentUser, State, Work
from services.api.problems import responses
from services.api.rights import needs
from services.api.state import ApiState
from services.api.transaction import TransactionRoute
from services.unit_of_work import UnitOfWork
from services.users.attempts import service as attempts
from services.users.repository import SignedIn
from services.users.rights import Scope
from services.users.totp import service
from services.users.totp.codes import Secrets
from services.users.totp.schemas import RecoveryCodes, TotpConfirm, TotpEnrolment, TotpProof, TotpStart, TotpState

router = APIRouter(route_class=TransactionRoute, prefix="/users/me/totp", tags=["users"])

_PROOF = responses(400, 401, 403, 409, 413, 422, 429, 503)


@router.get("", responses=responses(401, 403))
@needs(Scope.profile_read)
async def read_second_factor(caller: CurrentUser, uow: Work, state: State) -> TotpState:
    """Whether the caller has a second factor, and needs one."""
    return await service.state_of(uow, caller, require_totp=state.settings.requires_totp)


@router.post("", status_code=201, responses=_PROOF)
@needs(Scope.profile_write)
async def set_up_second_factor(
    request: Request, response: Response, given: TotpStart, caller: CurrentUser, uow: Work, state: State
) -> TotpEnrolment:
    """Get a secret for an authenticator app. It counts once it has been confirmed with a code."""
    async with _confirmed(request, caller, given.current_password, uow, state):
        enrolment = await service.enrol(uow, Secrets.from_settings(state.settings), caller.id)
    response.headers["Cache-Control"] = "no-store"
    return enrolment


@router.post("/confirm", responses=responses(400, 401, 403, 409, 413, 422, 429))
@needs(Scope.profile_write)
async def confirm_second_factor(
    request: Request, response: Response, given: TotpConfirm, caller: CurrentUser, uow: Work, state: State
) -> RecoveryCodes:
    """Confirm the app with its first code: from now on, a sign-in needs one. All other sessions end."""
    async with _confirmed(request, caller, None, uow, state):
        secrets = Secrets.from_settings(state.settings)
        codes = await service.confirm(uow, secrets, caller, given.otp.get_secret_value())
    response.headers["Cache-Control"] = "no-store"
    return RecoveryCodes(recovery_codes=codes)


@router.post("/recovery-codes", responses=_PROOF)
@needs(Scope.profile_write)
async def renew_recovery_codes(
    request: Request, response: Response, given: TotpProof, caller: CurrentUser, uow: Work, state: State
) -> RecoveryCodes:
    """Replace the recovery codes. Earlier ones are no longer accepted."""
    async with _confirmed(request, caller, given.current_password, uow, state):
        secrets = Secrets.from_settings(state.settings)
        codes = await service.renew_recovery_codes(uow, secrets, caller, given.otp.get_secret_value())
    response.headers["Cache-Control"] = "no-store"
    return RecoveryCodes(recovery_codes=codes)


@router.delete("", status_code=204, responses=_PROOF)
@needs(Scope.profile_write)
async def remove_second_factor(
    request: Request, given: TotpProof, caller: CurrentUser, uow: Work, state: State
) -> None:
    """Remove the second factor, with the password and a code. All other sessions end."""
    async with _confirmed(request, caller, given.current_password, uow, state):
        secrets = Secrets.from_settings(state.settings)
        await service.disable(uow, secrets, caller, given.otp.get_secret_value())


@asynccontextmanager
async def _confirmed(
    request: Request, caller: SignedIn, password: SecretStr | None, uow: UnitOfWork, state: ApiState
) -> AsyncIterator[None]:
    """Count an attempt, and check the password if one is given. The count is forgiven once the block has succeeded.

    So wrong codes after the right password are counted as well.
    """
    # Only one connection at a time.
    await uow.rollback()
    async with counted(
        request, lambda counting, limits: attempts.take_confirmation(counting, limits, caller.id)
    ) as attempt:
        if password is not None:
            await attempts.confirm(uow, state.passwords, caller.id, password)
        yield
    await attempts.forgive(uow, attempt)
