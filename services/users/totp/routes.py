"""HTTP routes for the caller's second factor."""

from fastapi import APIRouter, Request

from services.api.attempts import confirmed
from services.api.dependencies import CurrentUser, State, Work
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.errors import WrongCode, WrongPassword
from services.users.rights import Scope
from services.users.totp import service
from services.users.totp.codes import Secrets
from services.users.totp.schemas import RecoveryCodes, TotpConfirm, TotpEnrolment, TotpProof, TotpStart, TotpState

router = APIRouter(route_class=TransactionRoute, prefix="/users/me/totp", tags=["users"])

_PROOF = responses(400, 401, 403, 409, 413, 422, 429, 503, WrongPassword, WrongCode)


@router.get("", responses=responses(401, 403))
@needs(Scope.profile_read)
async def read_second_factor(caller: CurrentUser, uow: Work, state: State) -> TotpState:
    """Whether the caller has a second factor, and needs one."""
    return await service.state_of(uow, caller, require_totp=state.settings.requires_totp)


@router.post("", status_code=201, responses=_PROOF)
@needs(Scope.profile_write)
async def set_up_second_factor(
    request: Request, given: TotpStart, caller: CurrentUser, uow: Work, state: State
) -> TotpEnrolment:
    """Get a secret for an authenticator app. It counts once it has been confirmed with a code."""
    async with confirmed(request, caller.id, given.current_password, uow):
        return await service.enrol(uow, Secrets.from_settings(state.settings), caller.id)


@router.post("/confirm", responses=responses(400, 401, 403, 409, 413, 422, 429, WrongCode))
@needs(Scope.profile_write)
async def confirm_second_factor(
    request: Request, given: TotpConfirm, caller: CurrentUser, uow: Work, state: State
) -> RecoveryCodes:
    """Confirm the app with its first code: from now on, a sign-in needs one. All other sessions end."""
    async with confirmed(request, caller.id, None, uow):
        secrets = Secrets.from_settings(state.settings)
        codes = await service.confirm(uow, secrets, caller, given.otp.get_secret_value())
    return RecoveryCodes(recovery_codes=codes)


@router.post("/recovery-codes", responses=_PROOF)
@needs(Scope.profile_write)
async def renew_recovery_codes(
    request: Request, given: TotpProof, caller: CurrentUser, uow: Work, state: State
) -> RecoveryCodes:
    """Replace the recovery codes. Earlier ones are no longer accepted."""
    async with confirmed(request, caller.id, given.current_password, uow):
        secrets = Secrets.from_settings(state.settings)
        codes = await service.renew_recovery_codes(uow, secrets, caller, given.otp.get_secret_value())
    return RecoveryCodes(recovery_codes=codes)


@router.delete("", status_code=204, responses=_PROOF)
@needs(Scope.profile_write)
async def remove_second_factor(
    request: Request, given: TotpProof, caller: CurrentUser, uow: Work, state: State
) -> None:
    """Remove the second factor, with the password and a code. All other sessions end."""
    async with confirmed(request, caller.id, given.current_password, uow):
        secrets = Secrets.from_settings(state.settings)
        await service.disable(uow, secrets, caller, given.otp.get_secret_value())
