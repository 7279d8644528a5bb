"""A TCP proxy that cuts connections, or falls silent, when a test wants it to."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from sqlalchemy import make_url


class Proxy:
    """Listens on a free loopback port and forwards what it receives to the server at `url`.

    It cuts a connection when `cut` returns true for what the client sends. While it is `silent`, it accepts connections
    and reads from them, but never answers.
    """

    def __init__(self, url: str, cut: Callable[[bytes], bool] = lambda _: False) -> None:
        self._target = make_url(url)
        self.cut = cut
        self.cuts = 0
        self.accepted = 0
        self.silent = False

    @property
    def url(self) -> str:
        """The server's address through this proxy."""
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._connections: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(self._target.host, self._target.port)
            ways = {
                asyncio.create_task(self._pass_on(reader, up_writer, from_client=True)),
                asyncio.create_task(self._pass_on(up_reader, writer, from_client=False)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                up_writer.close()
        except OSError:
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, from_client: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self.silent:
                    continue
                if from_client and self.cut(data):
                    self.cuts += 1
                    return
                sink.write(data)
                await sink.drain()
