"""HEAD wherever there is GET, and 405 with every method that the path takes."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn
from fastapi import Response
from fastapi.responses import StreamingResponse
from fastapi.routing import iter_route_contexts

from benchmarks.sessions import session_of
from services.api.server import Server
from services.console.route import PageRoute
from services.credits.statement import service as export
from services.credits.statement.repository import StatementRepository
from services.local.embedded.ports import LOOPBACK
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.test_metrics import scrape
from tests.api.test_statement import PATH, with_notes
from tests.factories import make_operator, make_user

CSV = f"{PATH}.csv"


async def both(api: Api, path: str, *, by: User | None = None, seen: str | None = None) -> httpx2.Response:
    """The reply to HEAD, once it is what GET would have answered, without its body. `seen` is sent as If-None-Match."""
    headers = {} if seen is None else {"If-None-Match": seen}
    got = await api.get(path, by=by, headers=headers)
    head = await api.request("HEAD", path, by=by, headers=headers)
    assert head.content == b""
    assert head.status_code == got.status_code
    different = {"x-request-id", "ratelimit"} | ({"content-length"} if path == "/metrics" else set())
    assert {name: value for name, value in head.headers.items() if name not in different} == {
        name: value for name, value in got.headers.items() if name not in different
    }
    return head


ADMINS = {"api-keys", "personal-data.ndjson", "role-requests"}
"""A word of the paths that only admins may read; theirs are among them."""


async def test_every_path_with_get_accepts_head(api: Api) -> None:
    operator = await make_operator(api.database)
    admin = await make_user(api.database, role=Role.admin)
    paths = {
        str(route.path_format)
        for route in iter_route_contexts(api.app.routes)
        # Without a cookie, pages of the console are the form to sign in.
        if "GET" in (route.methods or set()) and not isinstance(route.original_route, PageRoute)
    }
    assert len(paths) > 25
    for path in sorted(paths):
        filled = "/".join(str(uuid4()) if part.startswith("{") else part for part in path.split("/"))
        by = admin if ADMINS & set(path.split("/")) else operator
        assert (await both(api, filled, by=by)).status_code in (200, 308, 404, 422), path


async def test_head_says_what_get_would(api: Api) -> None:
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1))

    head = await both(api, f"/v1/orders/{placed['id']}", by=buyer)
    assert head.status_code == 200
    assert head.headers["etag"] == '"1"'
    assert int(head.headers["content-length"]) > 100
    assert head.headers["content-type"] == "application/json"

    assert (await both(api, f"/v1/orders/{uuid4()}", by=buyer)).status_code == 404
    refused = await both(api, f"/v1/orders/{placed['id']}")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    await both(api, f"/v1/orders/{placed['id']}", by=buyer, seen='"1"')


async def test_head_of_what_the_caller_already_has_is_304(api: Api) -> None:
    def read_thing() -> Response:
        return Response(status_code=304, headers={"ETag": '"7"'})

    api.app.add_api_route("/thing", read_thing)
    head = await both(api, "/thing", seen='"7"')
    assert (head.status_code, head.headers["etag"]) == (304, '"7"')


async def test_head_without_a_get_is_405(api: Api) -> None:
    head = await both(api, "/v1/top-ups")
    assert (head.status_code, head.headers["allow"]) == (405, "POST")


async def test_head_counts_as_head_on_its_route(api: Api) -> None:
    await api.request("HEAD", "/v1/products")
    labels = (("method", "HEAD"), ("route", "/v1/products"), ("status", "2xx"))
    assert (await scrape(api))["waybill_http_request_duration_seconds_count", labels] == 1


async def test_head_reads_no_stream_and_keeps_no_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_LINES_A_PIECE", 3)
    user = await with_notes(api, *["x"] * 7)
    lines = StatementRepository.lines
    reads: list[bool] = []

    async def counted(self: StatementRepository, *args: Any, **kwargs: Any) -> Any:
        reads.append(True)
        return await lines(self, *args, **kwargs)

    monkeypatch.setattr(StatementRepository, "lines", counted)

    head = await api.request("HEAD", CSV, by=user)
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/csv")
    assert head.content == b""
    assert len(reads) == 1, "only what decides about the status"
    assert api.app.state.waybill.database.engine.pool.checkedout() == 0

    assert (await api.request("HEAD", CSV, by=user, params={"filter": "kind:eq:gift"})).status_code == 400
    assert (await api.request("HEAD", CSV)).status_code == 401


async def test_head_does_not_wait_for_a_stream_that_has_nothing_to_say(api: Api) -> None:
    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def read_silence() -> StreamingResponse:
        return StreamingResponse(silence(), media_type="text/event-stream")

    api.app.add_api_route("/silence", read_silence)
    head = await asyncio.wait_for(api.request("HEAD", "/silence"), 5)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_a_connection_can_be_used_again_after_head(api: Api) -> None:
    user = await with_notes(api, "x")
    authorization = f"Authorization: Bearer {api.tokens.make(session_of(user.id))}\r\n"
    asked = [("HEAD", CSV), ("HEAD", PATH), ("HEAD", "/nowhere"), ("GET", "/healthz")]
    async with served(api) as (reader, writer):
        for method, path in asked:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n".encode())
        statuses = []
        for _ in asked:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            statuses.append(head.split(b" ")[1])
    assert statuses == [b"200", b"200", b"404", b"200"]


@asynccontextmanager
async def served(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the application behind the server of `waybill api`."""
    listener = socket.create_server((LOOPBACK, 0))
    server = Server(uvicorn.Config(api.app, log_config=None, lifespan="off"), api.settings)
    serving = asyncio.create_task(server.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/users/me", "GET, HEAD, PATCH, DELETE"),
        ("/v1/products/1", "GET, HEAD, PATCH, DELETE"),
        ("/v1/orders", "GET, HEAD, POST"),
        ("/v1/top-ups", "POST"),
        ("/healthz", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
async def test_405_names_every_method_of_the_path(api: Api, path: str, allow: str) -> None:
    for method in ("PUT", "OPTIONS", "BREW"):
        reply = await api.request(method, path)
        assert_problem(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == allow


async def test_each_path_allows_the_documented_methods_and_no_others(api: Api) -> None:
    paths: dict[str, Any] = api.app.openapi()["paths"]
    assert len(paths) > 70
    for path, operations in paths.items():
        documented = {method.upper() for method in operations}
        documented |= {"HEAD"} if "GET" in documented else set()
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"} - documented:
            reply = await api.request(method, re.sub(r"\{\w+\}", "1", path))
            assert reply.status_code == 405, f"{method} {path}"
            assert_problem(reply, 405, "method_not_allowed")
            assert set(reply.headers["allow"].split(", ")) == documented, f"{method} {path}"


async def test_the_document_has_no_operations_for_head(api: Api) -> None:
    document = (await api.get("/openapi.json")).json()
    assert not any("head" in operations for operations in document["paths"].values())
