"""Signing in and out, and the way to the first page."""

from typing import Annotated

from fastapi import Form, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import Field, SecretStr
from starlette.exceptions import HTTPException

from services.api.attempts import counted
from services.api.dependencies import Device, State, Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs, public
from services.console import assets, tokens
from services.console.errors import SIGN_IN, safe_target, sign_in_page
from services.console.navigation import pages_for
from services.console.rendering import redirect, render
from services.console.route import PageForm, page_router, with_cookie
from services.console.staff import Staff, check_staff, lifetimes_of
from services.errors import Forbidden, OtpRequired, Unauthenticated
from services.fields import storable
from services.users.attempts import service as attempts
from services.users.rights import Scope
from services.users.sessions import service
from services.users.sessions.service import Credentials
from services.users.totp.codes import Secrets

router = page_router()

_YEAR = 31_536_000


class SignIn(PageForm):
    """What a person types to sign in."""

    email: str = Field(max_length=254)
    password: SecretStr = Field(max_length=200)
    otp: SecretStr | None = Field(default=None, max_length=64)
    target: str = Field(default="", max_length=4000)


@router.get("")
@needs(Scope.profile_read)
async def open_console(request: Request, staff: Staff) -> Response:
    """Go to the first page that the caller may see."""
    pages = pages_for(staff)
    if pages:
        return redirect(request, pages[0].path)
    if staff.limited:
        raise Forbidden("your role needs a second factor; set one up with POST /v1/users/me/totp, then sign in again")
    return render(request, "nothing.html")


@router.get("/sign-in")
@public
async def show_sign_in(request: Request) -> Response:
    """The form to sign in."""
    return sign_in_page(request)


@router.post("/sign-in")
@public
@rate_class(RateClass.sign_in)
@with_cookie(tokens.VISITOR)
async def sign_in(
    form: Annotated[SignIn, Form()], request: Request, device: Device, uow: Work, state: State
) -> Response:
    """Begin a session, as `POST /v1/token` does: with the same limits on attempts, and the second factor."""
    request.state.typed = {"email": form.email, "target": safe_target(request, form.target)}
    password, otp = form.password.get_secret_value(), form.otp.get_secret_value().strip() if form.otp else ""
    try:
        for given in (form.email, password):
            storable(given)
    except ValueError as error:
        raise Unauthenticated("the e-mail address or the password is wrong") from error
    async with counted(
        request, lambda counting, limits: attempts.take_sign_in(counting, limits, form.email, device.address)
    ) as attempt:
        try:
            granted = await service.sign_in(
                uow,
                state.passwords,
                Secrets.from_settings(state.settings),
                lifetimes_of(state.settings),
                Credentials(form.email, password, otp or None),
                device,
            )
        except OtpRequired as error:
            raise OtpRequired("your account has a second factor: type its code as well") from error
    user = await uow.users.signed_in(granted.caller, require_totp=state.settings.requires_totp)
    assert user is not None, "the session has just begun"
    try:
        check_staff(user)
    except Forbidden:
        # No session remains, but the password was right.
        await uow.rollback()
        await attempts.forgive(uow, attempt)
        return render(request, "refused.html", {"role": user.role.value}, status=403)
    await attempts.forgive(uow, attempt)
    response = RedirectResponse(request.state.typed["target"], status_code=303)
    tokens.keep_session(request, response, granted.refresh_token)
    return response


@router.post("/sign-out")
@needs(Scope.profile_write)
async def sign_out(request: Request, staff: Staff, uow: Work) -> Response:
    """End the session."""
    await service.sign_out_here(uow, staff)
    response = redirect(request, SIGN_IN)
    tokens.forget_session(request, response)
    return response


@router.get("/assets/{version}/{name}")
@public
@rate_class(RateClass.internal)
async def read_asset(version: str, name: str) -> FileResponse:
    """A file that pages need. A browser keeps it; during an update, the other release's is not kept."""
    if name not in assets.FILES:
        raise HTTPException(404, "there is no such file")
    kept = f"public, max-age={_YEAR}, immutable" if version == assets.VERSION else "no-store"
    return FileResponse(assets.FILES[name], headers={"Cache-Control": kept})
