"""HTTP routes for password resets."""

from fastapi import APIRouter

from services.api.dependencies import Device, State, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import public
from services.api.transaction import TransactionRoute
from services.errors import MailOff, TokenInvalid
from services.mail import sender_of
from services.users.attempts import service as attempts
from services.users.resets import service
from services.users.resets.schemas import Reset, ResetRequest

router = APIRouter(route_class=TransactionRoute, prefix="/password-resets", tags=["users"])


@router.post("", status_code=202, responses=responses(400, 413, 422, 429, MailOff))
@public
@rate_class(RateClass.sign_in)
async def ask_for_reset(wanted: ResetRequest, device: Device, uow: Work, state: State) -> None:
    """Send a mail with a token to set a new password. The reply does not reveal whether the address is known."""
    if sender_of(state.settings) is None:
        raise MailOff("this installation does not send mail, so passwords cannot be reset")
    limits = attempts.Limits.of(state.settings)
    await attempts.take_mail(uow, limits, wanted.email, device.address)
    await service.ask(uow, wanted.email)


@router.post("/confirm", status_code=204, responses=responses(400, 413, 422, 503, TokenInvalid))
@public
@rate_class(RateClass.sign_in)
async def reset_password(given: Reset, uow: Work, state: State) -> None:
    """Set a new password with the token from the mail, which works once. All sessions end."""
    await service.reset(uow, state.passwords, given)
