"""`GET /`: where things are. A page for browsers, JSON for those who ask for it."""

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import iter_route_contexts

from services import exposition
from services.api.checked import CheckedRoute
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import public
from services.settings import Settings

_STYLE = """\
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 34rem; margin: 3rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
dt { margin-top: 1rem; font-weight: 600; }
dd { margin: 0; }
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Waybill</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>Waybill</h1>
<p>Orders and prepaid credits.</p>
<dl>
{links}
</dl>
</main>
</body>
</html>
"""


class Link(NamedTuple):
    """Something that this process serves, and its path below that of the page."""

    name: str
    path: str
    title: str
    explained: str


_LINKS = (
    Link("docs", "docs", "Documentation", "of the API, on which requests can be tried"),
    Link("openapi", "openapi.json", "OpenAPI", "the same for programs"),
    Link("console", "console", "Console", "for operators: what waits, what failed and why, whether the books balance"),
    Link("health", "healthz", "Health", "whether this process is alive"),
    Link("readiness", "readyz", "Readiness", "whether it can serve requests, and what is wrong if it cannot"),
    Link("metrics", "metrics", "Metrics", "of this process, for Prometheus"),
)

router = APIRouter(route_class=CheckedRoute, include_in_schema=False)


def note_links(app: FastAPI, settings: Settings) -> None:
    """Find out what the application serves. Call this when all routes are included."""
    paths = {context.path for context in iter_route_contexts(app.routes)}
    app.state.links = [one for one in _LINKS if f"/{one.path}" in paths and _is_open(one, settings)]


def _is_open(link: Link, settings: Settings) -> bool:
    return link.name != "metrics" or exposition.refusal(settings, None) is None


@router.get("/")
@public
@rate_class(RateClass.internal)
async def read_start(request: Request) -> Response:
    """Links to what this process serves. They are relative: a proxy may serve it below a prefix."""
    links: list[Link] = request.app.state.links
    vary = {"Vary": "Accept"}
    if _wants_json(request.headers.getlist("accept")):
        return JSONResponse({"links": {one.name: one.path for one in links}}, headers=vary)
    return HTMLResponse(_render(links), headers={"Content-Security-Policy": _POLICY, **vary})


def _render(links: Iterable[Link]) -> str:
    shown = (
        f'<dt><a href="{escape(one.path)}">{escape(one.title)}</a></dt>\n<dd>{escape(one.explained)}</dd>'
        for one in links
    )
    return _PAGE.format(style=_STYLE, links="\n".join(shown))


def _wants_json(accepted: Iterable[str]) -> bool:
    """Whether JSON is preferred to HTML (RFC 9110, section 12.5.1). A client that does not care gets the page."""
    quality: dict[str, float] = {}
    for one in ",".join(accepted).split(","):
        media, *parameters = (part.strip().lower() for part in one.split(";"))
        quality[media] = next((_number(part[2:]) for part in parameters if part.startswith("q=")), 1.0)

    def of(kind: str, media: str) -> float:
        return quality.get(media, quality.get(f"{kind}/*", quality.get("*/*", 0.0)))

    return of("application", "application/json") > of("text", "text/html")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
