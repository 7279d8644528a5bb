"""Every route declares the scope that its callers need, or that it is public; there is no other kind of route."""

import re
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
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs, public, scope_of
from services.api.transaction import TransactionRoute
from services.app import create_app
from services.settings import Environment, Settings
from services.users.rights import Scope


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
    assert not list(undeclared(app))


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
    assert set(undeclared(app)) == added


CLASSES = {
    RateClass.sign_in: {
        "POST /console/sign-in",
        "POST /v1/email-verifications/confirm",
        "POST /v1/password-resets",
        "POST /v1/password-resets/confirm",
        "POST /v1/token",
        "POST /v1/users",
    },
    RateClass.search: {
        "GET /v1/operations/bulk-actions/preview",
        "GET /console/events",
        "GET /console/failures",
        "GET /console/failures/all",
        "GET /console/failures/group",
        "GET /console/consumers",
        "GET /console/orders",
        "GET /console/orders/{order_id}",
        "POST /console/orders",
        "GET /console/credits/accounts/{user_id}",
        "POST /console/credits",
        "GET /v1/operations/dead-letter-groups",
        "GET /v1/operations/history",
        "GET /v1/operations/orders-by-day",
        "GET /v1/operations/overview",
        "GET /v1/operations/orders/{order_id}/timeline",
        "POST /v1/operations/orders/search",
        "GET /v1/products",
        "GET /v1/users",
    },
    RateClass.batch: {"POST /v1/transfers/batch", "PUT /v1/products"},
    RateClass.internal: {
        "GET /",
        "GET /assets/{name}",
        "GET /console/assets/{version}/{name}",
        "GET /docs",
        "GET /healthz",
        "GET /internal/scaling",
        "GET /metrics",
        "GET /openapi.json",
        "GET /readyz",
        "GET /redoc",
    },
}
"""The routes of these classes. Exports and reports are known by their names; the rest is read or written."""


def test_every_route_has_a_class_with_a_limit(app: FastAPI) -> None:
    found: dict[RateClass, set[str]] = {}
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, DeclaredRoute):
            for method in context.methods or ():
                found.setdefault(route.rate_class, set()).add(f"{method} {context.path}")
    exports = found.pop(RateClass.export)
    assert all(re.search(r"\.(csv|ndjson)$|/reports/|/books$", path) for path in exports)
    assert {path.split()[0] for path in found.pop(RateClass.read)} == {"GET"}
    assert {path.split()[0] for path in found.pop(RateClass.write)} == {"POST", "PATCH", "DELETE"}
    assert found == CLASSES
    limits = {name.removeprefix("rate_limit_") for name in Settings.model_fields if name.startswith("rate_limit_")}
    assert limits == {kind.value for kind in RateClass} - {RateClass.internal}


def test_a_public_route_that_does_more_than_read_must_declare_its_class() -> None:
    @public
    async def tell() -> str:
        return ""

    router = APIRouter(route_class=DeclaredRoute)
    with pytest.raises(LookupError, match="tell is @public and not only read: it must declare its @rate_class"):
        router.post("/anything")(tell)
    assert router.routes == []
    router.post("/anything")(rate_class(RateClass.sign_in)(tell))
    assert len(router.routes) == 1


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


def test_the_openapi_document_says_which_scope_each_operation_needs(app: FastAPI) -> None:
    document = app.openapi()
    found = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            asked = operation.get("security", [])
            named = re.findall(r"^Needs the scope `(.+)`\.$", operation["description"], re.MULTILINE)
            scopes = {scope for one in asked for given in one.values() for scope in given}
            assert scopes == set(named), f"{method} {path}"
            assert not scopes or {"401", "403"} <= operation["responses"].keys(), f"{method} {path}"
            found[method.upper(), path] = scopes
    declared = {
        (method, context.path): scope_of(context.original_route.endpoint)
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, DeclaredRoute) and context.include_in_schema
        for method in context.methods or ()
    }
    assert found == {key: set() if scope is None else {scope.value} for key, scope in declared.items()}
    flows = document["components"]["securitySchemes"]["OAuth2PasswordBearer"]["flows"]
    assert flows["password"]["scopes"] == {scope.value: scope.meaning for scope in Scope}


def test_the_openapi_document_says_with_what_each_operation_is_limited(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            named = re.findall(r"^Rate limit: `(.+)`\.$", operation["description"], re.MULTILINE)
            assert len(named) == (path not in ("/healthz", "/readyz", "/metrics", "/internal/scaling")), (
                f"{method} {path}"
            )
            assert set(named) <= set(RateClass)


def test_a_route_that_is_added_is_in_the_document_with_its_scope(app: FastAPI) -> None:
    @needs(Scope.audit_read)
    async def read_trail(_: CurrentUser) -> str:
        """Read the trail."""
        return ""

    router = APIRouter(route_class=TransactionRoute)
    router.get("/trail")(read_trail)
    app.include_router(router, prefix="/v1")
    operation = app.openapi()["paths"]["/v1/trail"]["get"]
    assert operation["description"] == "Read the trail.\n\nNeeds the scope `audit:read`.\n\nRate limit: `read`."
    assert operation["security"] == [{"OAuth2PasswordBearer": ["audit:read"]}, {"ApiKey": ["audit:read"]}]
