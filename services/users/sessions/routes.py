"""HTTP routes for tokens and sessions."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from pydantic import SecretStr

from services.api.attempts import counted
from services.api.dependencies import CurrentUser, Device, State, Work
from services.api.problems import domain_problem, responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs, public
from services.api.transaction import TransactionRoute
from services.errors import Fault, InvalidInput, OtpInvalid, OtpRequired, Unauthenticated
from services.fields import storable
from services.users.attempts import service as attempts
from services.users.rights import Scope
from services.users.sessions import service
from services.users.sessions.schemas import Grant, Sessions, Token, TokenRequest
from services.users.sessions.service import Credentials, Lifetimes, Reused
from services.users.totp.codes import Secrets

router = APIRouter(route_class=TransactionRoute, tags=["sessions"])


@router.post("/token", response_model=Token, responses=responses(400, 401, 413, 422, 429, 503, OtpRequired, OtpInvalid))
@public
@rate_class(RateClass.sign_in)
async def create_token(
    form: Annotated[TokenRequest, Form()], request: Request, device: Device, uow: Work, state: State
) -> Token | Response:
    """Sign in (OAuth 2.0 password flow; `username` is the e-mail address), or extend a session with its refresh token.

    A user with a second factor sends `otp` as well. Without it, the reply to the right password is `otp_required`.

    A refresh token works once: the reply contains the next one. If it is used again, the session ends.
    """
    lifetimes = Lifetimes.of(state.settings)
    granted: service.Granted | Reused
    if form.grant_type is Grant.password:
        email, password = _required("username", form.username), _required("password", form.password)
        try:
            for given in (email, password):
                storable(given)
        except ValueError as error:
            raise Unauthenticated("the e-mail address or the password is wrong") from error
        async with counted(
            request, lambda counting, limits: attempts.take_sign_in(counting, limits, email, device.address)
        ) as attempt:
            secrets = Secrets.from_settings(state.settings)
            otp = form.otp.get_secret_value() if form.otp is not None else None
            credentials = Credentials(email, password, otp)
            granted = await service.sign_in(uow, state.passwords, secrets, lifetimes, credentials, device)
        await attempts.forgive(uow, attempt)
    else:
        granted = await service.refresh(uow, lifetimes, _required("refresh_token", form.refresh_token), device)
    if isinstance(granted, Reused):
        # Not raised: that the session has ended is committed.
        return domain_problem(
            request, Unauthenticated("the refresh token was already used, so its session has been ended; sign in again")
        )
    access_token = state.tokens.make(granted.caller)
    return Token(access_token=access_token, expires_in=state.tokens.ttl, refresh_token=granted.refresh_token)


def _required(name: str, value: str | SecretStr | None) -> str:
    if value is None:
        raise InvalidInput(f"{name} is required for this grant_type", [Fault("Field required", f"#/{name}")])
    return value if isinstance(value, str) else value.get_secret_value()


@router.get("/sessions", responses=responses(401))
@needs(Scope.profile_read)
async def list_sessions(caller: CurrentUser, uow: Work) -> Sessions:
    """List where the caller is signed in, the last used first."""
    return await service.sessions_of(uow, caller)


@router.delete("/sessions/current", status_code=204, responses=responses(401))
@needs(Scope.profile_write)
async def sign_out(caller: CurrentUser, uow: Work) -> None:
    """Sign out: end the session of this request. Its tokens are invalid at once."""
    await service.sign_out_here(uow, caller)


@router.delete("/sessions/{session_id}", status_code=204, responses=responses(401, 404, 422))
@needs(Scope.profile_write)
async def end_session(session_id: UUID, caller: CurrentUser, uow: Work) -> None:
    """End one of the caller's sessions. Its tokens are invalid at once."""
    await service.sign_out(uow, caller, session_id)


@router.delete("/sessions", status_code=204, responses=responses(401))
@needs(Scope.profile_write)
async def end_all_sessions(caller: CurrentUser, uow: Work) -> None:
    """Sign out everywhere: end all of the caller's sessions, including this one."""
    await service.sign_out_everywhere(uow, caller)
