"""The page that describes the API. Everything it needs comes from this package, and from no other host."""

import asyncio
import json
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from services.api.checked import CheckedRoute
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import public

_ASSETS = Path(__file__).parent / "assets"
_FILES = {
    file.name: file
    for file in (
        _ASSETS / "docs.js",
        *(_ASSETS / "swagger-ui" / name for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")),
    )
}

# Swagger UI sets styles of elements, and has images in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_REVALIDATED = {"Cache-Control": "no-cache"}

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Waybill API</title>
<link rel="icon" type="image/png" href="assets/favicon-32x32.png">
<link rel="stylesheet" href="assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="assets/swagger-ui-bundle.js"></script>
<script src="assets/docs.js"></script>
</body>
</html>
"""

_rendering = Lock()
_rendered: WeakKeyDictionary[FastAPI, dict[str, bytes]] = WeakKeyDictionary()
"""The OpenAPI document of each application, by the path at which it is reached."""

router = APIRouter(route_class=CheckedRoute, include_in_schema=False)


@router.get("/docs")
@public
@rate_class(RateClass.internal)
async def read_docs() -> HTMLResponse:
    """The API's description as a page, on which requests can be tried."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, **_REVALIDATED})


@router.get("/openapi.json")
@public
@rate_class(RateClass.internal)
async def read_description(request: Request) -> Response:
    """The OpenAPI document. It is rendered once: rendering costs more than any other reply, and has no limit."""
    app, prefix = request.app, request.scope.get("root_path", "").rstrip("/")
    rendered = _rendered.get(app, {}).get(prefix) or await asyncio.to_thread(_render, app, prefix)
    return Response(rendered, media_type="application/json")


def _render(app: FastAPI, prefix: str) -> bytes:
    with _rendering:
        kept = _rendered.setdefault(app, {})
        if prefix not in kept:
            servers = {"servers": [{"url": prefix}]} if prefix else {}
            kept[prefix] = json.dumps({**app.openapi(), **servers}, ensure_ascii=False, separators=(",", ":")).encode()
        return kept[prefix]


@router.get("/redoc")
@public
@rate_class(RateClass.internal)
async def read_redoc() -> RedirectResponse:
    """Where many people look for the API's description."""
    return RedirectResponse("docs", status_code=308)


@router.get("/assets/{name}")
@public
@rate_class(RateClass.internal)
async def read_asset(name: str) -> FileResponse:
    """A file that the page needs."""
    if name not in _FILES:
        raise HTTPException(404, "there is no such file")
    return FileResponse(_FILES[name], headers=_REVALIDATED)
