"""Pages from templates. Every value is escaped, and a page can run and load only what this package contains."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from services.api.state import api_state
from services.console import assets
from services.console.navigation import ROOT, pages_for
from services.console.tokens import session_form_token
from services.users.repository import SignedIn
from services.users.rights import Scope

# Pico's style sheet contains its icons as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PROTECTION = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With `no-referrer`, browsers would hide the origin of the console's own forms.
    "Referrer-Policy": "same-origin",
}
"""Headers of all pages. That no cache keeps them is said on every reply of the API."""


_SCOPES = {scope.value: scope for scope in Scope}


def render(
    request: Request,
    template: str,
    values: Mapping[str, Any] | None = None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """The page of this template: `values` are its variables, beside those in `_common`."""
    text = _environment.get_template(template).render({**_common(request), **(values or {})})
    return HTMLResponse(text, status, headers={**PROTECTION, **(headers or {})})


def fragment(request: Request, template: str, values: Mapping[str, Any]) -> str:
    """A part of a page, for a stream."""
    return _environment.get_template(template).render({**_common(request), **values})


def address(request: Request, path: str) -> str:
    """The address of this path of the API, as the browser sees it: the API may be reached below a prefix."""
    return str(request.scope.get("root_path", "")).rstrip("/") + path


def redirect(request: Request, path: str) -> RedirectResponse:
    """Lead to the page at this path of the API, once a form has been handled."""
    return RedirectResponse(address(request, path), status_code=303)


def _common(request: Request) -> dict[str, Any]:
    settings = api_state(request).settings
    staff: SignedIn | None = getattr(request.state, "staff", None)
    return {
        "environment": settings.environment.value,
        "staff": staff,
        "may": lambda scope: staff is not None and staff.may(_SCOPES[scope]),
        "pages": pages_for(staff) if staff is not None else [],
        "current_path": request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/")),
        "form_token": session_form_token(request),
        "root": address(request, ROOT),
        "url": lambda path: address(request, path),
        "asset": lambda name: address(request, f"{ROOT}/assets/{assets.VERSION}/{assets.FILES[name].name}"),
    }


def _number(value: float, digits: int = 0) -> str:
    """With thin spaces between thousands: 12 345.6."""
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _sentence(text: str) -> str:
    """A message as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _rate(value: float | None) -> str:
    """Events in a second: with a digit after the point if there are few; a dash if it is unknown."""
    return "\N{EN DASH}" if value is None else _number(value, 1 if value < 100 else 0)


def _duration(seconds: float) -> str:
    """In the largest units that matter: 0.25 s, 42 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _utc(moment: datetime) -> str:
    """In UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _time(moment: datetime) -> Markup:
    """The element for a moment: `datetime` holds it exactly, for scripts."""
    return Markup('<time datetime="{}">{}</time>').format(moment.isoformat(), _utc(moment))


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.filters.update(number=_number, rate=_rate, sentence=_sentence, duration=_duration, time=_time, utc=_utc)
