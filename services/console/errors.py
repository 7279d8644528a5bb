"""Errors of the console as pages: what a problem says, for people."""

import json
from collections.abc import Callable
from typing import Any, cast

from fastapi import FastAPI, Request, Response

from services.api.problems import ProblemResponse
from services.console import tokens
from services.console.navigation import ROOT
from services.console.rendering import address, render

SIGN_IN = f"{ROOT}/sign-in"
_LONGEST_TARGET = 2000
_KEPT = ("retry-after", "allow", "x-request-id")
"""Header fields of a problem that its page has as well."""


def install(app: FastAPI) -> None:
    """Turn the errors of the console into pages. Call this after the API's handlers of errors are installed."""
    for kind, handler in list(app.exception_handlers.items()):
        app.add_exception_handler(kind, _showing_page(cast(Callable[..., Any], handler)))


def _showing_page(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def handle(request: Request, error: Exception) -> Response:
        response: Response = await handler(request, error)
        return as_page(request, response) if is_console(request) else response

    return handle


def is_console(request: Request) -> bool:
    """Whether the request is for the console, even if there is no such page."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
    return bool(path == ROOT or path.startswith(f"{ROOT}/"))


def as_page(request: Request, response: Response) -> Response:
    """The response; if it is a problem, a page that says the same. Someone who is not signed in can do so on it."""
    if not isinstance(response, ProblemResponse):
        return response
    problem = json.loads(bytes(response.body))
    headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
    if request.headers.get("hx-request") == "true" and response.status_code == 401:
        # A part of a page cannot hold the form: the browser loads the whole page again.
        headers["HX-Refresh"] = "true"
    signs_in = request.scope["path"].endswith(SIGN_IN) and request.method == "POST"
    if response.status_code == 401 or signs_in:
        return sign_in_page(request, problem["detail"], response.status_code, headers)
    return render(request, "error.html", {"problem": problem}, status=response.status_code, headers=headers)


def sign_in_page(
    request: Request, message: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """The form to sign in. It leads back to the page that was asked for."""
    visitor = tokens.visitor_of(request)
    typed: dict[str, str] = getattr(request.state, "typed", {})
    values: dict[str, Any] = {
        "message": message,
        "email": typed.get("email", ""),
        "target": typed.get("target") or _target(request),
        "form_token": tokens.form_token(visitor),
        "staff": None,
        "pages": [],
    }
    page = render(request, "sign_in.html", values, status=status, headers=headers)
    tokens.keep_visitor(request, page, visitor)
    return page


def _target(request: Request) -> str:
    if request.method != "GET" or request.scope["path"].endswith(SIGN_IN):
        return address(request, ROOT)
    query = request.scope["query_string"].decode("latin-1")
    return safe_target(request, request.url.path + (f"?{query}" if query else ""))


def safe_target(request: Request, target: str) -> str:
    """Where to go after the sign-in: this page of the console, or its first one if this is something else."""
    root = address(request, ROOT)
    is_ours = target == root or target.startswith((f"{root}/", f"{root}?"))
    is_plain = len(target) <= _LONGEST_TARGET and target.isascii() and target.isprintable() and "\\" not in target
    return target if is_ours and is_plain and "/.." not in target else root
