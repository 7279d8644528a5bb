"""The console's cookies, and the tokens that prove that a form comes from one of its pages.

The session's cookie holds a refresh token of the session, of which the database knows only the hash. Scripts cannot
read it, and browsers send it only with requests that the console's own pages make.
"""

import hashlib
import hmac
import secrets
from typing import Literal

from fastapi import Request, Response

from services.api.state import api_state
from services.console.navigation import ROOT
from services.errors import Forbidden

SESSION = "waybill_console"
VISITOR = "waybill_visitor"
"""Of someone who is about to sign in: what the token of the form depends on."""

FIELD = "form_token"
_SAME_SITE: Literal["strict"] = "strict"


def session_token(request: Request) -> str | None:
    """The refresh token in the session's cookie."""
    return request.cookies.get(_name(request, SESSION))


def session_form_token(request: Request) -> str:
    """The token for the forms of this session's pages; empty without a session."""
    token = session_token(request)
    return form_token(token) if token else ""


def form_token(secret: str) -> str:
    """The token of forms that goes with the secret in a cookie, which it does not reveal."""
    return hmac.new(secret.encode("utf-8", "surrogateescape"), b"waybill form", hashlib.sha256).hexdigest()


def keep_session(request: Request, response: Response, token: str) -> None:
    """Let the browser keep the session until it is closed."""
    _set(request, response, SESSION, token)
    _delete(request, response, VISITOR)


def forget_session(request: Request, response: Response) -> None:
    _delete(request, response, SESSION)


def visitor_of(request: Request) -> str:
    """The secret in the cookie of someone who is about to sign in; a new one if there is none."""
    return request.cookies.get(_name(request, VISITOR)) or secrets.token_urlsafe(32)


def keep_visitor(request: Request, response: Response, visitor: str) -> None:
    _set(request, response, VISITOR, visitor)


def check_origin(request: Request) -> None:
    """Raises `Forbidden` unless a page of this origin makes the request.

    Browsers say so in `Sec-Fetch-Site`. Old ones, and all over plain HTTP, send only an `Origin`.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        same = site == "same-origin"
    else:
        # Not parsed: what is not an address would raise.
        same = origin is not None and origin.partition("://")[2] == request.headers.get("host")
    if not same:
        raise Forbidden("this form was sent by another site; open the console and send it from there")


async def check_form_token(request: Request, cookie: str) -> None:
    """Raises `Forbidden` unless the form has the token that goes with this cookie."""
    secret = request.cookies.get(_name(request, cookie))
    given = (await request.form()).get(FIELD)
    if not secret or not isinstance(given, str) or not _equal(given, form_token(secret)):
        raise Forbidden("this form belongs to another session, or is too old; go back, load the page again, and repeat")


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _set(request: Request, response: Response, name: str, value: str) -> None:
    secure = _is_secure(request)
    response.set_cookie(
        _name(request, name), value, path=_path(request), secure=secure, httponly=True, samesite=_SAME_SITE
    )


def _delete(request: Request, response: Response, name: str) -> None:
    secure = _is_secure(request)
    response.delete_cookie(_name(request, name), path=_path(request), secure=secure, httponly=True, samesite=_SAME_SITE)


def _name(request: Request, name: str) -> str:
    # With this prefix, browsers refuse a cookie that a page without HTTPS has set (RFC 6265bis, section 4.1.3).
    return f"__Secure-{name}" if _is_secure(request) else name


def _is_secure(request: Request) -> bool:
    return not api_state(request).settings.is_development


def _path(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/") + ROOT
