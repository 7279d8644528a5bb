"""The methods that a path allows: HEAD wherever there is GET, and a 405 lists them all."""

from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.paths import KnownPaths

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


async def answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD like GET, without the body: same status, same headers.

    Work on the reply stops once its headers are known, so that no stream is read in vain.
    """

    async def send_head(message: Message) -> None:
        await send(message)
        await send({"type": "http.response.body"})
        raise _Sent

    # A copy, because the server looks at the method, too: it frames a reply to HEAD differently.
    inner = {**scope, "method": "GET"}
    try:
        await app(inner, receive, send_head)
    except _Sent:
        pass
    finally:
        # Outer layers need the route that was matched.
        scope.update({**inner, "method": "HEAD"})


class _Sent(Exception):
    """Raised inside the application instead of accepting the body of its reply."""


def allowed(request: Request) -> str:
    """The methods that the path of this request allows, for the `Allow` header."""
    found: list[str] = []
    router = request.app.router.middleware_stack
    known = router.methods(request.scope["path"]) if isinstance(router, KnownPaths) else set()
    for method in _METHODS:
        # `/v1/transfers/batch` is not a transfer, although the path of one matches.
        if known and method not in known:
            continue
        # Routers leave notes under "fastapi"; those of the refused request do not count.
        scope = {**request.scope, "method": method, "fastapi": {}}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return ", ".join(found)
