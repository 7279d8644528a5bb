"""HTTP/1.1 on a connection of its own for each request, so that a client can leave at any byte."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import h11

from services.local.embedded.ports import LOOPBACK

Broken = (OSError, TimeoutError, h11.RemoteProtocolError)
"""Raised by `exchange` if no part of a reply arrived."""

_LINGER_NOT = struct.pack("ii", 1, 0)
_BROWSING = 0.3
"""The most seconds that a client waits before it leaves."""


class Way(StrEnum):
    """How a client leaves."""

    fin = "fin"
    reset = "reset"
    half = "half"
    """It closes only its own side, and reads on for a moment."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """When a client leaves: after a share of its request, or after a number of bytes of the reply or of seconds."""

    way: Way
    sent: float = 1.0
    received: int = 0
    seconds: float = 0.0

    @classmethod
    def at_random(cls, dice: random.Random) -> "Leaving":
        way = dice.choice(list(Way))
        if dice.random() < 0.25:
            return cls(way, sent=dice.random())
        # Evenly over the orders of magnitude: some leave in the head of the reply, some in the middle of a download.
        return cls(way, received=int(2 ** dice.uniform(0, 19)) - 1, seconds=dice.uniform(0, _BROWSING))


@dataclass(slots=True)
class Reply:
    """As much of a reply as arrived. `status` is 0 without a status line; `whole`: nothing is missing."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    received: int = 0

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300].decode(errors='replace')}"


def render(
    method: str, path: str, *, token: str | None = None, key: str | None = None, body: bytes | None = None
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: storm", "Connection: close"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if key is not None:
        lines.append(f"Idempotency-Key: {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


async def exchange(port: int, request: bytes, *, leaving: Leaving | None = None, seconds: float = 10.0) -> Reply:
    """Send the request and read its reply; `seconds` is the client's patience.

    The reply is not whole if the client left, or if the connection broke after the reply had begun. Raises one of
    `Broken` if it broke before.
    """
    reply = Reply()
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        async with asyncio.timeout(seconds):
            if leaving is None:
                writer.write(request)
                await writer.drain()
                await _read(reader, reply)
            else:
                await _ask_and_leave(reader, writer, request, reply, leaving)
    except Broken:
        if not reply.status and leaving is None:
            raise
    finally:
        writer.transport.abort()
    return reply


async def _ask_and_leave(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, reply: Reply, leaving: Leaving
) -> None:
    writer.write(request[: round(len(request) * leaving.sent)])
    with contextlib.suppress(*Broken):
        await writer.drain()
        if leaving.sent == 1.0:
            async with asyncio.timeout(leaving.seconds):
                await _read(reader, reply, most=leaving.received)
    if not reply.whole:
        with contextlib.suppress(OSError):
            await _leave(reader, writer, leaving.way)


async def _leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    match way:
        case Way.fin:
            writer.close()
        case Way.reset:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()
        case Way.half:
            writer.write_eof()
            with contextlib.suppress(*Broken):
                async with asyncio.timeout(_BROWSING):
                    await reader.read(65_536)


async def _read(reader: asyncio.StreamReader, reply: Reply, most: int | None = None) -> None:
    """Read the reply into `reply`, until it is whole or `most` bytes have come."""
    parser = h11.Connection(our_role=h11.CLIENT)
    # The parser must know that a request went out.
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "storm")]))
    parser.send(h11.EndOfMessage())
    while most is None or reply.received < most:
        data = await reader.read(65_536 if most is None else min(65_536, most - reply.received))
        reply.received += len(data)
        parser.receive_data(data)
        while (event := parser.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Response():
                    reply.status = event.status_code
                    reply.headers = {name.decode().lower(): value.decode() for name, value in event.headers}
                case h11.Data():
                    reply.body += bytes(event.data)
                case h11.EndOfMessage():
                    reply.whole = True
                    return
                case _:
                    raise ConnectionResetError("the connection was closed before the reply")
