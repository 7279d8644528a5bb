"""One line for each request, with its ids and without anything that a client could misuse it for."""

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, suppress
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.types import ASGIApp, Message

from services.acting import Acting
from services.api import problems
from services.api.headers import Protection
from services.api.middleware import RequestMiddleware
from services.api.refusals import Refusals
from services.api.request_log import RequestLog
from services.api.request_times import RequestTimes
from services.logs import JsonLines, configure_logging, log_quickly
from services.settings import Environment, LogFormat, Settings

ORDER = UUID(int=7)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def written() -> Iterator[Callable[[LogFormat], io.StringIO]]:
    """Configures the log as the API does and returns what it writes; restores everything afterwards."""
    root, arq = logging.getLogger(), logging.getLogger("arq")
    handlers, levels = root.handlers[:], (root.level, arq.level)

    def configure(log_format: LogFormat = LogFormat.json) -> io.StringIO:
        said = io.StringIO()
        with redirect_stderr(said):
            configure_logging(
                Settings(_env_file=None, environment=Environment.development, log_format=log_format), "api"
            )
        return said

    yield configure
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    arq.setLevel(levels[1])


def shop() -> FastAPI:
    app = FastAPI(openapi_url=None)
    problems.install(app)

    @app.post("/orders", status_code=201)
    async def place(request: Request) -> Response:
        request.state.acting = Acting("user:12", 12)
        await request.body()
        return Response(b"placed", 201, {"Location": f"/orders/{ORDER}"})

    @app.get("/orders/{order_id}")
    async def read(order_id: str) -> str:
        logging.getLogger("services").info("reading")
        return order_id

    @app.get("/broken")
    async def broken() -> None:
        raise HTTPException(503)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def send(
    log: RequestLog,
    method: str,
    path: str,
    app: ASGIApp | None = None,
    *,
    query: str = "",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Without a client: it would refuse to send some of these, and log lines of its own."""
    outer = RequestMiddleware(app or shop(), 1000, RequestTimes(), Protection(), Refusals(), log)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("192.0.2.1", 1234),
        "server": ("s", 80),
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def ignore(_: Message) -> None:
        pass

    with suppress(RuntimeError):
        await outer(scope, receive, ignore)


def lines_of(said: io.StringIO) -> list[dict[str, Any]]:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return [json.loads(line) for line in said.getvalue().splitlines()]


async def test_a_line_says_what_was_asked_how_it_was_answered_and_for_whom(written: Any) -> None:
    said = written()
    headers = {"X-Request-Id": "r1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    await send(RequestLog(), "POST", "/orders", query="email=me@example.com", body=b"1234", headers=headers)
    (line,) = lines_of(said)
    assert 0 < line.pop("seconds") < 60
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "process": "api",
        "level": "info",
        "logger": "services.api.request_log",
        "method": "POST",
        "route": "/orders",
        "status": 201,
        "bytes_in": 4,
        "bytes_out": 6,
        "request_id": "r1",
        "trace_id": TRACE,
        "caller": "user:12",
        "location": f"/orders/{ORDER}",
    }


async def test_a_line_names_the_route_and_neither_the_path_nor_the_query(written: Any) -> None:
    said = written()
    await send(RequestLog(), "GET", "/orders/someone@example.com", query="name=Someone")
    await send(RequestLog(), "GET", "/nowhere/someone@example.com")
    await send(RequestLog(), "STEAL\tALL", "/orders/1")
    assert "omeone" not in said.getvalue()
    lines = [line for line in lines_of(said) if line["event"] == "request"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/orders/{order_id}", 200),
        ("GET", "unmatched", 404),
        ("other", "/orders/{order_id}", 405),
    ]


async def test_every_line_of_a_request_has_the_ids_in_its_path_and_no_text_of_the_client(written: Any) -> None:
    said = written()
    await send(RequestLog(), "GET", f"/orders/{ORDER}", headers={"X-Request-Id": "r1"})
    await send(RequestLog(), "GET", "/orders/mine\nforged", headers={"X-Request-Id": "r2"})
    inside = [line for line in lines_of(said) if line["event"] == "reading"]
    assert [(line["request_id"], line.get("order_id")) for line in inside] == [("r1", str(ORDER)), ("r2", None)]


async def test_only_a_share_gets_a_line_but_each_that_fails(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = written()
    chances = iter([0.2, 0.24, 0.26, 0.9])
    monkeypatch.setattr("services.api.request_log.random.random", lambda: next(chances))
    for _ in range(4):
        await send(RequestLog(4), "GET", "/orders/1")
    await send(RequestLog(0), "GET", "/orders/1")
    await send(RequestLog(0), "GET", "/broken")
    lines = [line for line in lines_of(said) if line["event"] == "request"]
    assert [(line["status"], line["level"]) for line in lines] == [(200, "info"), (200, "info"), (503, "warning")]


async def test_a_request_that_ends_without_a_reply_has_a_line(written: Any) -> None:
    said = written()

    async def dies(*_: object) -> None:
        raise RuntimeError

    await send(RequestLog(0), "GET", "/", dies)
    (line,) = lines_of(said)
    assert (line["status"], line["level"]) == (None, "warning")


async def test_probes_get_no_line_unless_they_are_asked_for(written: Any) -> None:
    said = written()
    await send(RequestLog(), "GET", "/healthz")
    assert lines_of(said) == []
    await send(RequestLog(probes=True), "GET", "/healthz")
    assert [line["route"] for line in lines_of(said)] == ["/healthz"]


async def test_lines_are_in_the_order_in_which_they_were_logged(written: Any) -> None:
    said = written()
    log = logging.getLogger("services")
    log_quickly(log, logging.INFO, "first", {})
    log_quickly(log, logging.INFO, "second", {})
    assert said.getvalue() == ""
    log.info("third")
    log_quickly(log, logging.DEBUG, "not at this level", {})
    log_quickly(log, logging.INFO, "fourth", {})
    assert [line["event"] for line in lines_of(said)] == ["first", "second", "third", "fourth"]


async def test_a_quick_line_is_the_same_as_any_other(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    fields = {"text": 'é "\n\x7f\x9b', "number": 1.5, "nothing": None}
    said = written()
    log_quickly(logging.getLogger("services"), logging.INFO, "event", fields)
    logging.getLogger("services").info("event", extra=fields)
    quick, usual = (line | {"timestamp": ""} for line in lines_of(said))
    assert quick == usual
    assert said.getvalue().isascii()
    # Where others listen, it is a record like any other.
    logging.getLogger().addHandler(caplog.handler)
    log_quickly(logging.getLogger("services"), logging.INFO, "event", fields)
    assert caplog.messages == ["event"]
    assert JsonLines("api").fields(caplog.records[0])["number"] == 1.5


async def test_on_a_terminal_no_value_moves_the_cursor_or_forges_a_line(written: Any) -> None:
    said = written(LogFormat.console)
    forged = "nothing\n2026-01-01T00:00:00.000000Z [error    ] forged\x1b[2J\x9b2J"
    log = logging.getLogger("services")
    log.info("said %s", forged, extra={"given": forged})
    log_quickly(log, logging.INFO, "quick", {"given": forged})
    log.error("broken", exc_info=ValueError(forged))
    for handler in logging.getLogger().handlers:
        handler.flush()
    assert not set(said.getvalue()) & {"\x1b", "\x9b", "\r"}
    assert "given='nothing\\n2026-01-01" in said.getvalue()
    heads = [line for line in said.getvalue().splitlines() if line.startswith("2026-01-01")]
    # Only below a line, where a traceback is.
    assert len(heads) == 1
