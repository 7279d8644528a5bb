"""Finds the route of a path without parameters by looking it up.

FastAPI's router matches one route after another, twice for an included one, which takes longer than any other part of
a short request outside its handler.
"""

from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send


def look_up_paths(app: FastAPI) -> None:
    """Let the application look up paths without parameters. Call this when all routes are included."""
    app.router.middleware_stack = KnownPaths(app)


class KnownPaths:
    """The application's router, with a shortcut to the routes whose paths have no parameters.

    What is not found here is left to the router: paths with parameters, and unknown paths. Other methods of a path that
    is found are refused: the router would take `GET /v1/transfers/batch` for a transfer.
    """

    def __init__(self, app: FastAPI) -> None:
        self._router = app.router
        self._match = app.router.middleware_stack
        self._known = _known(list(iter_route_contexts(app.routes)))
        self._paths = {path: route for (_, path), (route, _) in self._known.items()}

    def methods(self, path: str) -> set[str]:
        """The methods of this path, if it is one without parameters."""
        return {method for method, known in self._known if known == path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        # With a root path, the path is longer than the route's. FastAPI's tracing gets its routes from the router.
        if scope["type"] == "http" and not scope.get("root_path") and "fastapi.telemetry" not in scope:
            found = self._known.get((scope["method"], scope["path"]))
            if found is None and scope["path"] in self._paths:
                # The metrics name it.
                scope["route"] = self._paths[scope["path"]]
                raise HTTPException(405)
        if found is None:
            await self._match(scope, receive, send)
            return
        route, handle = found
        scope["router"] = self._router
        scope["route"] = route
        scope["endpoint"] = route.endpoint
        scope["path_params"] = {}
        await handle(scope, receive, send)


def _known(contexts: list[RouteContext]) -> dict[tuple[str, str], tuple[APIRoute, ASGIApp]]:
    known: dict[tuple[str, str], tuple[APIRoute, ASGIApp]] = {}
    for context in contexts:
        route, path = context.original_route, context.path
        if not isinstance(route, APIRoute) or path is None or context.param_convertors:
            continue
        for method in context.methods or ():
            # The router would take an earlier route that matches, too, such as one with a parameter.
            first = next(one for one in contexts if method in (one.methods or ()) and one.path_regex.match(path))
            if first is context:
                known[method, path] = route, context.app
    return known
