"""Paths without parameters are looked up, with the outcome that matching one route after another would have."""

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Message, Scope

from services.api.paths import KnownPaths, look_up_paths
from services.app import create_app
from services.settings import Settings

V1 = APIRouter()


@V1.get("/things/{name}")
async def read_thing(name: str, request: Request) -> list[str]:
    return ["read_thing", name, request.scope["route"].path]


@V1.get("/things")
async def list_things(request: Request) -> list[str]:
    return ["list_things", request.scope["endpoint"].__name__, request.scope["route"].path]


@V1.post("/things")
async def make_thing() -> list[str]:
    return ["make_thing"]


@V1.get("/things/hidden")
async def read_hidden() -> list[str]:
    return ["read_hidden"]


class Paths:
    """An application with the shortcut, and the requests that its router had to match."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.app.include_router(V1, prefix="/v1")
        self.matched: list[str] = []
        match = self.app.router.middleware_stack

        async def matching(scope: Scope, receive: Any, send: Any) -> None:
            self.matched.append(scope["path"])
            await match(scope, receive, send)

        self.app.router.middleware_stack = matching
        look_up_paths(self.app)

    async def ask(self, method: str, path: str, root_path: str = "") -> tuple[int, bytes]:
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app({**scope, "root_path": root_path}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.fixture
def paths() -> Paths:
    return Paths()


async def test_a_path_without_parameters_is_not_matched(paths: Paths) -> None:
    assert await paths.ask("GET", "/v1/things") == (200, b'["list_things","list_things","/things"]')
    assert await paths.ask("POST", "/v1/things") == (200, b'["make_thing"]')
    assert paths.matched == []


async def test_any_other_path_is_matched(paths: Paths) -> None:
    assert await paths.ask("GET", "/v1/things/a") == (200, b'["read_thing","a","/things/{name}"]')
    assert (await paths.ask("GET", "/v1/nothing"))[0] == 404
    assert (await paths.ask("GET", "/shop/v1/things", root_path="/shop"))[0] == 200
    assert paths.matched == ["/v1/things/a", "/v1/nothing", "/shop/v1/things"]


async def test_another_method_of_a_path_without_parameters_is_refused(paths: Paths) -> None:
    assert (await paths.ask("PUT", "/v1/things"))[0] == 405
    assert paths.matched == []


async def test_an_earlier_route_that_matches_comes_first(paths: Paths) -> None:
    assert await paths.ask("GET", "/v1/things/hidden") == (200, b'["read_thing","hidden","/things/{name}"]')


def test_every_path_of_the_application_without_parameters_leads_where_its_router_leads(settings: Settings) -> None:
    app = create_app(settings)
    known = app.router.middleware_stack
    assert isinstance(known, KnownPaths)
    checked = 0
    for context in iter_route_contexts(app.routes):
        for method in context.methods or ():
            found = known._known.get((method, context.path or ""))
            if found is not None:
                scope: Scope = {"type": "http", "method": method, "path": context.path, "root_path": "", "headers": []}
                first = next(one for one in iter_route_contexts(app.routes) if _matches(one, scope))
                assert found[0] is first.original_route
                checked += 1
    assert checked > 20


def _matches(context: Any, scope: Scope) -> bool:
    return bool(context._effective_route.matches(scope)[0] is Match.FULL)
