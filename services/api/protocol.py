"""Limits on each HTTP connection: uvicorn itself waits forever for a client that is slow to send or to read."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.api import pressure
from services.api.headers import PROTECTIVE
from services.api.problems import MEDIA_TYPE, Problem
from services.fields import new_id
from services.settings import Settings

MAX_HEAD_BYTES = 64 * 1024
MAX_HEAD_FIELDS = 100
_MAX_PIPELINE = 64
# With chunks of one byte, each byte of a body takes six on the wire. Anything beyond is extensions and trailers.
_MAX_PADDING = 8
_LINGER = 2.0
"""Seconds for a client to read a refusal. Closing with unread input would reset the connection and lose the reply."""
_EVICT_AFTER = 1.0
"""The least time that an unfinished request gets, in seconds, even if other connections need its place."""
RETRY = {"retry-after": "1"}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one process and its connections. Times are seconds, accurate to within a quarter of the shortest."""

    connections: int
    head_timeout: float
    body_timeout: float
    write_timeout: float
    max_body_bytes: int

    @classmethod
    def from_settings(cls, settings: Settings, connections: int) -> "HttpLimits":
        return cls(
            connections,
            settings.http_head_timeout,
            settings.http_body_timeout,
            settings.http_write_timeout,
            settings.max_body_bytes,
        )


def refusal(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A complete reply, from its status line to the end of its body, that says why this connection is closed."""
    request_id = str(new_id())
    phrase = HTTPStatus(status).phrase
    body = Problem(title=phrase, status=status, code=code, detail=detail, request_id=request_id).model_dump_json()
    fields = {
        "date": formatdate(usegmt=True),
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body.encode())),
        "connection": "close",
        "x-request-id": request_id,
        **PROTECTIVE,
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n{body}".encode()


class Connections:
    """The open connections of a process, and those with an incomplete request, oldest first."""

    def __init__(self, limits: HttpLimits, server_state: ServerState) -> None:
        self.limits = limits
        self.unfinished: dict[LimitedProtocol, float] = {}
        self._open = server_state.connections

    def admit(self, connecting: int, now: float) -> bool:
        """Whether one more connection may be served, in addition to the `connecting` ones that are about to be.

        Unfinished requests may take half of the places. Beyond that, or if no place is left, the oldest one loses its
        place.
        """
        full = len(self._open) + connecting >= self.limits.connections
        if full or len(self.unfinished) > self.limits.connections // 2:
            oldest = next(iter(self.unfinished), None)
            if oldest is not None and now - self.unfinished[oldest] >= _EVICT_AFTER:
                oldest.make_place()
                return True
        return not full


class _Waiting(Enum):
    """What a connection waits for."""

    head = auto()
    body = auto()
    reply = auto()
    """The request is complete. When the reply is, too, uvicorn's keep-alive time runs until the next request."""


class _Refused(Exception):
    """Raised inside the parser: the rest of the request is not read."""

    def __init__(self, reason: str, status: int, code: str, detail: str) -> None:
        self.refusal = (reason, status, code, detail)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the size of a head and on the time that a client may take.

    One timer checks each connection periodically; nothing is scheduled for a single request or a piece of a body.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        limits = connections.limits
        self._registry = connections
        self._limits = limits
        self._tick = min(limits.head_timeout, limits.body_timeout, limits.write_timeout) / 4
        self._waiting = _Waiting.head
        # When the client's turn began, and when it last sent something.
        self._since = self._heard_at = 0.0
        # Bytes of the head or body so far, without those that arrived together with its beginning.
        self._received = self._received_before = 0
        # Since when the client has not been reading what was written.
        self._unread_since: float | None = None
        # Whether the client's input is no longer read.
        self._refused = False
        self._running: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        pressure.connections_open.inc()
        self._await_head()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        pressure.connections_open.dec()
        self._registry.unfinished.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        # uvicorn notifies only the newest request; the running one may be an earlier one.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        try:
            self.parser.feed_data(data)
            self._check_size()
        except httptools.HttpParserUpgrade:
            # No other protocol is supported: the request is answered as HTTP/1.1.
            return
        except _Refused as refused:
            self._refuse(*refused.refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(*(cause.refusal if isinstance(cause, _Refused) else _MALFORMED))

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    # Called by the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is _Waiting.reply:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        # Trailers count, too.
        if len(self.headers) > MAX_HEAD_FIELDS:
            detail = f"the request has more than {MAX_HEAD_FIELDS} header fields"
            raise _Refused("head_size", 431, "headers_too_large", detail)

    def on_headers_complete(self) -> None:
        self._check_head()
        if len(self.pipeline) >= _MAX_PIPELINE:
            raise _Refused("pipeline", 400, "malformed_request", "too many requests were pipelined on this connection")
        super().on_headers_complete()
        self._waiting = _Waiting.body
        self._since = self._heard_at = self.loop.time()
        self._received = self._received_before = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._waiting = _Waiting.reply
        self._registry.unfinished.pop(self, None)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    # Enforcing the limits.

    def _check_head(self) -> None:
        """Refuse a head that is too large, or that a proxy before us may understand in another way.

        The parser already refuses most of what requests are smuggled with, such as two lengths, a length beside
        `Transfer-Encoding`, folded lines, and line ends without CR.
        """
        size, hosts, version = len(self.url), 0, self.parser.get_http_version()
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):
                # RFC 9112, section 6.1.
                raise _Refused(*_MALFORMED)
        if size > MAX_HEAD_BYTES:
            raise _head_too_large()
        # RFC 9112, section 3.2.
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise _Refused(*_MALFORMED)

    def make_place(self) -> None:
        """Give the place of this unfinished request to another connection."""
        self._refuse("crowded_out", 503, "overloaded", "too many requests are unfinished; send it again")
        self.transport.close()

    def _await_head(self) -> None:
        self._waiting = _Waiting.head
        self._since = self.loop.time()
        self._received = 0
        if self._running is None or self._running.response_complete:
            self._registry.unfinished[self] = self._since

    def _check_size(self) -> None:
        if self._received <= MAX_HEAD_BYTES:
            return
        if self._waiting is _Waiting.head:
            raise _head_too_large()
        most = MAX_HEAD_BYTES + _MAX_PADDING * self._limits.max_body_bytes
        if self._waiting is _Waiting.body and self._received > most:
            raise _Refused("body_size", 413, "body_too_large", "the body has too many chunk extensions or trailers")

    def _look_later(self) -> None:
        self._timer = self.loop.call_later(self._tick, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        self._look_later()
        if self._unread_since is not None and now - self._unread_since >= self._limits.write_timeout:
            pressure.connection_refused("reader")
            self.transport.abort()
        elif self.transport.is_closing():
            # Closing waits until everything is written, which is forever if the client does not read.
            self._unread_since = self._unread_since or now
        elif not self._refused:
            self._look_at_client(now)

    def _look_at_client(self, now: float) -> None:
        if self._received != self._received_before:
            self._received_before = self._received
            self._heard_at = now
        if self.flow.read_paused:
            # It is we who are not reading, for example because of pipelined requests.
            self._since = self._heard_at = now
        elif self._waiting is _Waiting.head:
            if now - self._since < self._limits.head_timeout:
                return
            if self.headers is None:
                # No byte arrived: browsers and probes open connections that they do not use.
                self.transport.close()
            else:
                self._refuse("head_time", 408, "request_timeout", "the head of the request did not arrive in time")
        elif self._waiting is _Waiting.body:
            silent, took = now - self._heard_at, now - self._since
            if silent >= self._limits.head_timeout or took >= self._limits.body_timeout:
                self._refuse("body_time", 408, "request_timeout", "the body of the request did not arrive in time")
        elif self.timeout_keep_alive_task is None and self.cycle.response_complete:
            # Input after the reply began no request, but stopped the keep-alive time: start that again.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse(self, reason: str, status: int, code: str, detail: str) -> None:
        """Stop reading, answer with a problem if no reply has begun, and close."""
        pressure.connection_refused(reason)
        self._refused = True
        self._registry.unfinished.pop(self, None)
        if self._waiting is _Waiting.body:
            cycle = self.cycle
            if cycle is not self._running:
                # It is waiting behind earlier requests, and will not get its turn.
                self.pipeline.popleft()
                self._leave_after(self.pipeline[0][0] if self.pipeline else self._running)
                return
            if cycle.response_started and not cycle.response_complete:
                # The reply cannot be taken back. Cutting it off shows that it is not complete.
                self.transport.abort()
                return
            # The handler learns that the rest will not come. What it answered before it read the body remains valid.
            cycle.disconnected = True
            cycle.message_event.set()
            self._leave(None if cycle.response_complete else refusal(status, code, detail, _retry(status)))
        elif self._running is not None and not self._running.response_complete:
            self._leave_after(self.cycle)
        else:
            self._leave(refusal(status, code, detail, _retry(status)))

    def _leave_after(self, last: RequestResponseCycle | None) -> None:
        """Close when the replies to earlier requests have been sent; `last` is the last of these."""
        if last is not None and not last.response_complete:
            last.keep_alive = False
        else:
            self._leave(None)

    def _leave(self, reply: bytes | None) -> None:
        """Let the client read the reply, then close."""
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if reply is not None:
            self.transport.write(reply)
        self.transport.write_eof()
        # Further input is read and dropped.
        self.flow.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(_LINGER, self.transport.abort)


_MALFORMED = ("malformed", 400, "malformed_request", "this is not a well-formed HTTP/1.1 request")


def _head_too_large() -> _Refused:
    return _Refused(
        "head_size", 431, "headers_too_large", f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"
    )


def _retry(status: int) -> Mapping[str, str]:
    return RETRY if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
