"""Middleware for every request: an id and a trace context, for replies, logs and events, and a limit on its size.

The application's startup passes through it, too, so that the log says why the application refuses to start.
"""

import asyncio
import re
import sys
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import problem
from services.errors import CannotStart
from services.fields import new_id
from services.logs import bind, unbind

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
# W3C Trace Context, section 3.2: version-format of version 00.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class RequestContextMiddleware:
    """Takes `X-Request-Id` and `traceparent` from the request if they are well formed; the reply carries the id.

    A request that is cancelled because the server stops gets a 503; the server itself would answer in plain text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(new_id())
        traceparent = headers.get("traceparent", "")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = traceparent if _TRACEPARENT.fullmatch(traceparent) else None

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        bound = bind(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not started:
                # A commit that had begun is finished in the background.
                detail = (
                    "the server stopped before the request was finished; send it again with the same Idempotency-Key"
                )
                stopped = problem(Request(scope), 503, "outcome_unknown", detail, headers={"Retry-After": "1"})
                await stopped(scope, receive, send_with_id)
            raise
        finally:
            unbind(bound)


class StartMiddleware:
    """Reports in one line, instead of a traceback, why the application refuses to start."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_reason(message: Message) -> None:
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, CannotStart):
                message = {**message, "message": str(error)}
            await send(message)

        await self._app(scope, receive, send_reason)


class BodyLimitMiddleware:
    """Refuses a request body of more than `limit` bytes with 413, whether its length was announced or not.

    Starlette's own limit answers in plain text, and replaces the application's answer.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"the body is larger than {self._limit} bytes"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._limit:
            refused = problem(Request(scope), 413, "body_too_large", detail)
            await refused(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, detail)
            return message

        await self._app(scope, receive_within_limit, send)
