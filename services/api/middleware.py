"""What is done for every request, in one layer: each further layer would cost another call for every message.

The application's startup passes through it, too, so that the log says why the application refuses to start.
"""

import asyncio
import re
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import uuid_utils
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.callers import REFUSALS
from services.api.headers import Protection
from services.api.methods import answer_head
from services.api.problems import problem
from services.api.refusals import Refusals
from services.api.request_log import RequestLog, context_of
from services.api.request_times import RequestTimes, route_path
from services.api.spans import of_request
from services.errors import CannotStart
from services.logs import bind_from, unbind

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
# W3C Trace Context, section 3.2: version-format of version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class RequestMiddleware:
    """Gives each request an id and a trace context, limits its body, answers HEAD like GET, measures and logs it.

    Replies get the headers of `protection`.

    - `X-Request-Id` and `traceparent` are taken from the request if they are well formed; the reply carries the id.
    - A body of more than `limit` bytes is refused with 413, whether its length was announced or not. Routes lower the
      limit. Starlette's own limit answers in plain text, and replaces the application's answer.
    - A request that is cancelled because the server stops gets a 503; the server itself would answer in plain text.
    - A request that ends without a reply counts as a 5xx in the times. Streams, which last as long as they should, do
      not count.
    - Refusals (401, 403, 429) are counted for the audit log.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        times: RequestTimes,
        protection: Protection,
        refusals: Refusals,
        log: RequestLog | None = None,
    ) -> None:
        self._app = app
        self._limit = limit
        self._times = times
        self._protection = protection
        self._refusals = refusals
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._limit, self._protection)
        started = time.perf_counter()
        try:
            await self._handle(scope, exchange)
        finally:
            seconds, route = time.perf_counter() - started, route_path(scope)
            if not scope["state"].get("is_stream"):
                self._times.observe(scope["method"], route, exchange.status or 500, seconds)
            if exchange.status in REFUSALS:
                self._refusals.add(scope, exchange.status)
            if self._log is not None:
                self._log.write(
                    scope,
                    route,
                    exchange.status,
                    seconds,
                    received=exchange.received,
                    sent=exchange.sent,
                    location=exchange.location,
                )

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Report in one line, instead of a traceback, why the application refuses to start."""

        async def send_reason(message: Message) -> None:
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, CannotStart):
                message = {**message, "message": str(error)}
            await send(message)

        await self._app(scope, receive, send_reason)

    async def _handle(self, scope: Scope, exchange: "_Exchange") -> None:
        headers = scope["headers"]
        given, traceparent = _value(headers, b"x-request-id"), _value(headers, b"traceparent")
        # Not `new_id()`, which costs ten times as much: nothing depends on the time in this id.
        exchange.request_id = request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid_utils.uuid7())
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = traceparent if _TRACEPARENT.fullmatch(traceparent) else None
        state["limit_body"] = exchange.limit_body
        state["fields"] = exchange.fields
        bound = bind_from(partial(context_of, scope))
        try:
            with of_request(scope, exchange):
                await self._answer_or_stop(scope, exchange)
        finally:
            unbind(bound)
            # It leads back to the scope: as a cycle, all of the request would stay until the next garbage collection.
            state.pop("limit_body", None)

    async def _answer_or_stop(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            await self._answer(scope, exchange)
        except asyncio.CancelledError:
            if exchange.status is None:
                # A commit that had begun is finished in the background.
                detail = (
                    "the server stopped before the request was finished; send it again with the same Idempotency-Key"
                )
                stopped = problem(Request(scope), 503, "outcome_unknown", detail, headers={"Retry-After": "1"})
                await stopped(scope, exchange.receive, exchange.send)
            raise

    async def _answer(self, scope: Scope, exchange: "_Exchange") -> None:
        announced = _value(scope["headers"], b"content-length")
        exchange.announced = int(announced[:20]) if announced.isdecimal() else 0
        if exchange.announced > self._limit:
            refused = problem(Request(scope), 413, "body_too_large", _too_large(self._limit))
            await refused(scope, exchange.receive, exchange.send)
        elif scope["method"] == "HEAD":
            await answer_head(self._app, scope, exchange.receive, exchange.send)
        else:
            await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """A request and its reply: `receive` and `send` of the layers inside."""

    __slots__ = (
        "_limit",
        "_protection",
        "_receive",
        "_send",
        "announced",
        "fields",
        "location",
        "received",
        "request_id",
        "sent",
        "status",
    )

    def __init__(self, receive: Receive, send: Send, limit: int, protection: Protection) -> None:
        self._protection = protection
        self._receive = receive
        self._send = send
        self._limit = limit
        self.received = 0
        """Bytes of the body that have arrived."""
        self.sent = 0
        """Bytes of the reply's body."""
        self.location: bytes | None = None
        """Where what the request has made is."""
        self.announced = 0
        """The length of the body that the request states; 0 if it does not."""
        self.fields: list[tuple[bytes, bytes]] = []
        """Header fields that the reply gets, whatever it is going to be."""
        self.request_id = ""
        self.status: int | None = None
        """None before the reply begins."""

    def limit_body(self, size: int) -> None:
        """Lower the limit of the body to this number of bytes. Raises `HTTPException` if it is going to be exceeded."""
        self._limit = min(self._limit, size)
        if self.announced > self._limit:
            raise HTTPException(413, _too_large(self._limit))

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if self.received > self._limit:
            raise HTTPException(413, _too_large(self._limit))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            if self.status == 201:
                self.location = next((value for name, value in headers if name == b"location"), None)
            message["headers"] = [
                *headers,
                (b"x-request-id", self.request_id.encode()),
                *self.fields,
                *self._protection.missing(headers),
            ]
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)


def _value(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """The first header with this name; empty if there is none."""
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1")
    return ""


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes"
