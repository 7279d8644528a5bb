"""TCP proxies whose connections can go silent without being closed, as after a failover or a dropped NAT entry."""

import asyncio
import contextlib
from dataclasses import dataclass

from services.local.embedded.ports import LOOPBACK

_CHUNK = 65_536


@dataclass(eq=False, slots=True)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: bool = False

    @property
    def port(self) -> int:
        """The port that the server sees as its client's."""
        port: int = self.server.get_extra_info("sockname")[1]
        return port

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Passes connections to one port of the loopback address on to another. Use it on one event loop only."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hangs = False
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        await self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ports(self) -> list[int]:
        """What the server sees as its clients' ports: those of the open connections."""
        return [link.port for link in self._links]

    async def freeze(self, new_ones: bool) -> int:
        """From now on nothing passes through the open connections, without notice; returns how many there are.

        With `new_ones`, those that are made later say nothing either.
        """
        self._hangs = new_ones
        for link in self._links:
            link.silent = True
        return len(self._links)

    async def thaw(self) -> None:
        """New connections pass; the silent ones are reset on both sides."""
        self._hangs = False
        for link in list(self._links):
            if link.silent:
                link.abort()

    async def cut(self) -> None:
        """Reset every connection."""
        self._hangs = False
        for link in list(self._links):
            link.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection(LOOPBACK, self._target)
        except OSError:
            client.transport.abort()
            return
        link = _Link(client, server, silent=self._hangs)
        self._links.add(link)
        try:
            await asyncio.gather(_pump(link, from_client, server), _pump(link, from_server, client))
        finally:
            link.abort()
            self._links.discard(link)


async def _pump(link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            # Read and dropped: what is sent to a host that is gone is not handed back to its sender.
            if not link.silent:
                sink.write(data)
                await sink.drain()
    # The other side of a silent connection does not hear of its end.
    if not link.silent:
        with contextlib.suppress(OSError, RuntimeError):
            sink.close()
