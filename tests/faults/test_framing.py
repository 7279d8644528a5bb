"""Requests whose end or target a proxy in front may see elsewhere are refused, and nothing after them is served."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import uvicorn

from services.api.protocol import LimitedProtocol
from services.api.server import Server
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings
from tests.faults.edge import changed

HOST = b"Host: x\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Application:
    """Notes the path and the body of each request that reaches it."""

    def __init__(self) -> None:
        self.served: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.served.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


Say: TypeAlias = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def serving(settings: Settings, app: Application) -> AsyncIterator[Say]:
    """A server with our protocol, and what it answers on a new connection until it closes that."""
    listener = socket.create_server((LOOPBACK, 0))
    config = uvicorn.Config(app, http=LimitedProtocol, lifespan="off", log_config=None)
    server = Server(config, changed(settings, http_head_timeout=2.0, http_body_timeout=4.0, http_keep_alive_timeout=1))
    running = asyncio.create_task(server.serve([listener]))

    async def say(sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(LOOPBACK, listener.getsockname()[1])
        try:
            writer.write(sent)
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()

    try:
        yield say
    finally:
        server.should_exit = True
        await running


def post(*fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /first HTTP/" + version + b"\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


LENGTH_4, CODED = b"Content-Length: 4", b"Transfer-Encoding: chunked"

MALFORMED = {
    "length and coding": post(LENGTH_4, CODED) + b"0\r\n\r\n",
    "coding and length": post(CODED, LENGTH_4) + b"0\r\n\r\n",
    "two lengths": post(LENGTH_4, b"Content-Length: 5") + b"abcde",
    "the same length twice": post(LENGTH_4, LENGTH_4) + b"abcd",
    "a list of lengths": post(b"Content-Length: 4, 4") + b"abcd",
    "a length with a sign": post(b"Content-Length: +4") + b"abcd",
    "a negative length": post(b"Content-Length: -4"),
    "a huge length": post(b"Content-Length: " + b"9" * 30),
    "an empty length": post(b"Content-Length: "),
    "a length in two words": post(b"Content-Length: 4 4") + b"abcd",
    "chunked is not last": post(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    "identity": post(b"Transfer-Encoding: identity") + b"0\r\n\r\n",
    "another coding": post(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "two codings": post(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "the coding twice": post(CODED, CODED) + b"0\r\n\r\n",
    "a space before the colon": post(b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "a vertical tab": post(b"Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n",
    "a coding in HTTP/1.0": post(CODED, version=b"1.0") + b"0\r\n\r\n",
    "a folded field": post(b"X-A: 1\r\n 2"),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked") + b"0\r\n\r\n",
    "a space before the first field": b"GET /first HTTP/1.1\r\n Host: x\r\n\r\n",
    "lines without CR": b"GET /first HTTP/1.1\nHost: x\n\n",
    "lines without LF": b"GET /first HTTP/1.1\rHost: x\r\r",
    "a field without CR": post(b"A: 1\nB: 2"),
    "CR in a field": post(b"A: 1\rB: 2"),
    "NUL in a field": post(b"A: 1\x002"),
    "NUL in a name": post(b"A\x00: 1"),
    "a field without a name": post(b": 1"),
    "a field without a colon": post(b"A"),
    "a space in a name": post(b"A B: 1"),
    "no host": b"GET /first HTTP/1.1\r\n\r\n",
    "two hosts": post(b"Host: y", LENGTH_4) + b"abcd",
    "a chunk's size in words of C": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "a huge chunk": CHUNKED + b"F" * 17 + b"\r\nab\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-1\r\nab\r\n0\r\n\r\n",
    "chunks without CR": CHUNKED + b"2\nab\n0\n\n",
    "a chunk longer than its size": CHUNKED + b"2\r\nabcd\r\n0\r\n\r\n",
    "a space after a size": CHUNKED + b"2 \r\nab\r\n0\r\n\r\n",
    "a method in lower case": b"get /first HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /first\r\n\r\n",
    "HTTP/2.0": post(version=b"2.0"),
    "HTTP/1.2": post(version=b"1.2"),
    "the beginning of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space in the target": b"GET /first second HTTP/1.1\r\nHost: x\r\n\r\n",
    "a control character in the target": b"GET /fi\x01rst HTTP/1.1\r\nHost: x\r\n\r\n",
    "not ASCII in the target": b"GET /f\xc3\xbcrst HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def test_what_could_be_understood_in_two_ways_is_refused_and_ends_the_connection(settings: Settings) -> None:
    app = Application()
    async with serving(settings, app) as say:
        for name, sent in MALFORMED.items():
            said = await say(sent + SMUGGLED)
            assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n"), f"{name}: {said[:200]!r}"
            assert b'"code":"malformed_request"' in said, name
            assert b"\r\nconnection: close\r\n" in said, name
            assert said.count(b"HTTP/1.1") == 2, f"{name}: one reply, whose detail names the version: {said!r}"
            assert app.served == [], name


async def test_what_comes_behind_a_request_takes_nothing_from_it_and_is_not_served(settings: Settings) -> None:
    app = Application()
    async with serving(settings, app) as say:
        for behind in (b"\x00\x01\r\n\r\n", b"garbage\r\n\r\n", b"0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            app.served.clear()
            said = await say(post(LENGTH_4) + b"abcd" + behind + SMUGGLED)
            assert app.served == [("/first", b"abcd")], behind
            assert said.count(b"HTTP/1.1 200 OK") == 1, behind
        app.served.clear()
        said = await say(post(b"Connection: close", LENGTH_4) + b"abcd" + SMUGGLED)
        assert (app.served, said.count(b" 200 OK")) == ([("/first", b"abcd")], 1)


async def test_requests_with_a_clear_end_are_served_one_after_the_other(settings: Settings) -> None:
    app = Application()
    clear = [
        post(LENGTH_4) + b"abcd",
        CHUNKED + b"2\r\nab\r\n2;extension=1\r\ncd\r\n0\r\nTrailer: 1\r\n\r\n",
        post(b"transfer-encoding: CHUNKED") + b"4\r\nabcd\r\n0\r\n\r\n",
        b"\r\n" + post(b"Content-Length:    4   ") + b"abcd",
    ]
    async with serving(settings, app) as say:
        said = await say(b"".join(clear) + SMUGGLED)
        assert app.served == [("/first", b"abcd")] * len(clear) + [("/smuggled", b"")]
        assert said.count(b"HTTP/1.1 200 OK") == len(clear) + 1
        app.served.clear()
        await say(b"GET /first HTTP/1.0\r\n\r\n")
        assert app.served == [("/first", b"")]
