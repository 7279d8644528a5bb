"""The server of `waybill api`: uvicorn's, with a limit on connections and a reply to those that exceed it."""

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from functools import partial

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from services.api import pressure, stopping
from services.api.protocol import RETRY, Connections, HttpLimits, LimitedProtocol, refusal
from services.settings import Settings

logger = logging.getLogger(__name__)

_MOST_DESCRIPTORS = 65_536
_RESERVED_DESCRIPTORS = 64
"""For standard streams, the event loop, Redis, name lookups, short-lived files, and refused connections."""
_FEWEST_CONNECTIONS = 8
_LEAVING = 16
_LEAVING_SECONDS = 1.0
_ACCEPTED_AT_ONCE = 16
_RETRY_ACCEPT_SECONDS = 0.2
# Unsent bytes that the kernel buffers for a connection. With its default of some megabytes, a slow reader would show
# no progress for minutes, and each slow reader would cost that much memory.
_UNSENT_BYTES = 128 * 1024
_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})


def make_room(settings: Settings) -> int:
    """Raise the limit on open files, to 65,536 if possible; returns how many connections the process may serve.

    That is what remains after the database's connections and other needs, or the number in the settings if that is
    lower. Logs a warning if the limit leaves fewer than the settings ask for, or hardly any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    wanted = _MOST_DESCRIPTORS if hard == infinite else min(hard, _MOST_DESCRIPTORS)
    if soft != infinite and soft < wanted:
        # Some systems have another limit that is lower than the hard one.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    descriptors = _MOST_DESCRIPTORS if soft == infinite else soft
    database = settings.database_pool_size + settings.database_max_overflow
    if settings.database_replica_url is not None:
        # A second pool, and the two connections that compare the servers.
        database = 2 * (database + 1)
    if settings.analytics_url is not None:
        database += settings.analytics_pool_size
    possible = max(_FEWEST_CONNECTIONS, descriptors - database - _RESERVED_DESCRIPTORS)
    asked_for = settings.http_max_connections
    if asked_for > possible or possible == _FEWEST_CONNECTIONS:
        logger.warning(
            "a limit of %d open files leaves room for %d connections; raise it (ulimit -n, LimitNOFILE=)",
            descriptors,
            possible,
        )
    return min(asked_for or possible, possible)


class Server(uvicorn.Server):
    """Accepts connections itself, limits them, and stops on SIGHUP as it does on SIGTERM."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._limits = HttpLimits.from_settings(settings, make_room(settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        try:
            listeners = sockets or await listen(self.config.host, self.config.port, self.config.backlog)
        except OSError as error:
            logger.error("cannot listen on %s port %d: %s", self.config.host, self.config.port, error)
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        connections = Connections(self._limits, self.server_state)
        protocol = partial(
            LimitedProtocol, self.config, self.server_state, self.lifespan.state, loop, connections=connections
        )
        self.servers = [Acceptor(listener, connections, protocol, loop) for listener in listeners]  # type: ignore[misc]
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping.begin()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            # If the parent process made us ignore it, as nohup does, it stays ignored.
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)


async def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """A socket for each address of `host`. Raises `OSError` if one of them cannot be opened."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            # With port 0, all listen on the port that the first one got.
            chosen = listeners[0].getsockname()[1] if listeners else port
            listeners.append(socket.create_server((address[0], chosen), family=family, backlog=backlog))
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class Acceptor:
    """Accepts the connections of one listening socket.

    If there is no descriptor for a connection, the event loop's own server drops it without a reply or a line in the
    log. This one answers, logs, waits a little, and continues.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: Connections,
        protocol: Callable[[], asyncio.Protocol],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._listener = listener
        self._connections = connections
        self._protocol = protocol
        self._loop = loop
        self._connecting: set[asyncio.Task[None]] = set()
        # Refused connections, closed once their clients have had time to read why.
        self._leaving: deque[socket.socket] = deque()
        self._spare: socket.socket | None = socket.socket()
        self._closed = False
        listener.setblocking(False)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        loop.add_reader(listener, self._accept)

    @property
    def sockets(self) -> Sequence[socket.socket]:
        return [self._listener]

    def close(self) -> None:
        """Stop listening. Accepted connections stay open."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._close_leaving()
            if self._spare is not None:
                self._spare.close()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._connecting)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Any other error concerns only this connection, which is gone.
                if error.errno in _EXHAUSTED:
                    self._on_exhaustion(error)
                    return
                continue
            if self._connections.admit(len(self._connecting), self._loop.time()):
                task = self._loop.create_task(self._connect(accepted))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
            else:
                pressure.connection_refused("capacity")
                self._turn_away(accepted)

    async def _connect(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted)
        except (OSError, MemoryError) as error:
            logger.warning("a connection was lost before it was served: %r", error)
            accepted.close()

    def _on_exhaustion(self, error: OSError) -> None:
        """Answer waiting clients with the descriptors that are reserved for this, and try again a little later."""
        pressure.accept_failed(error)
        self._close_leaving()
        if self._spare is not None:
            self._spare.close()
        with suppress(OSError):
            for _ in range(_ACCEPTED_AT_ONCE):
                accepted, _ = self._listener.accept()
                _answer(accepted)
                accepted.close()
        self._spare = None
        with suppress(OSError):
            self._spare = socket.socket()
        # The listener stays readable while it cannot accept: without a pause this would be a busy loop.
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_RETRY_ACCEPT_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _turn_away(self, accepted: socket.socket) -> None:
        _answer(accepted)
        self._leaving.append(accepted)
        if len(self._leaving) > _LEAVING:
            self._leaving.popleft().close()
        self._loop.call_later(_LEAVING_SECONDS, accepted.close)

    def _close_leaving(self) -> None:
        while self._leaving:
            self._leaving.popleft().close()


def _answer(accepted: socket.socket) -> None:
    """Reply that the connection is refused."""
    accepted.setblocking(False)
    with suppress(OSError):
        accepted.send(refusal(503, "overloaded", "too many connections are open; try again", RETRY))
        accepted.shutdown(socket.SHUT_WR)
        # Closing with unread input would reset the connection and might lose the reply.
        accepted.recv(65_536)
