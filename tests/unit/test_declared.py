"""Every route declares the scope that its callers need, or that it is public; there is no other kind of route."""

from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from services.api.declared import DeclaredRoute
from services.api.dependencies import CurrentUser
from services.api.rights import needs, public, scope_of
from services.api.transaction import TransactionRoute
from services.app import create_app
from services.settings import Environment, Settings
from services.users.rights import Scope

PAGES = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
"""FastAPI's own: the documentation, which is open to everyone."""


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings(_env_file=None, environment=Environment.development))


def undeclared(app: FastAPI) -> Iterator[str]:
    """The paths of the routes that do not declare who may call them."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, DeclaredRoute):
            yield str(context.path)
            continue
        scope_of(route.endpoint)


def test_every_route_declares_who_may_call_it(app: FastAPI) -> None:
    assert sum(isinstance(one.original_route, DeclaredRoute) for one in iter_route_contexts(app.routes)) > 80
    assert set(undeclared(app)) == PAGES


async def anything() -> str:
    return ""


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse()


async def serve(scope: ASGIScope, receive: Receive, send: Send) -> None:
    await PlainTextResponse()(scope, receive, send)


async def listen(_: WebSocket) -> None: ...


def test_a_route_of_another_kind_is_found(app: FastAPI) -> None:
    app.get("/plain")(anything)
    router = APIRouter()
    router.get("/included")(anything)
    router.websocket("/socket")(listen)
    router.add_route("/starlette", answer)
    outer = APIRouter(prefix="/outer")
    outer.include_router(router)
    app.include_router(outer, prefix="/v1")
    app.router.routes.append(Mount("/mounted", serve))
    added = {"/plain", "/v1/outer/included", "/v1/outer/socket", "/v1/outer/starlette", "/mounted"}
    assert set(undeclared(app)) == PAGES | added


@pytest.mark.parametrize("kind", [DeclaredRoute, TransactionRoute])
def test_a_handler_that_declares_nothing_is_refused_when_its_route_is_made(kind: type[APIRoute]) -> None:
    router = APIRouter(route_class=kind)
    with pytest.raises(LookupError, match=r"^anything must declare a scope with @needs, or be @public$"):
        router.get("/anything")(anything)
    assert router.routes == []


def test_a_scope_that_nothing_would_check_is_refused() -> None:
    @needs(Scope.orders_read)
    async def open_by_mistake() -> str:
        return ""

    @public
    async def closed_by_mistake(_: CurrentUser) -> str:
        return ""

    router = APIRouter(route_class=TransactionRoute)
    with pytest.raises(LookupError, match="needs the scope orders:read: it must take a CurrentUser"):
        router.get("/open")(open_by_mistake)
    with pytest.raises(LookupError, match="is @public, so it cannot take a CurrentUser"):
        router.get("/closed")(closed_by_mistake)
