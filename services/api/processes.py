"""Several server processes behind one listening socket: `waybill api --workers N`, with uvicorn's supervisor."""

import asyncio
import os
import signal
import socket

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from services.api.server import Server, listen
from services.settings import get_settings


class Process(multiprocess.Process):
    """A process that runs our server, and stops when its parent has died."""

    def start(self) -> None:
        super().start()
        # Otherwise the pipe would not end with the process, and a check under way would wait until its time is up.
        self.child_conn.close()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        # Otherwise this process would hold both ends of the pipe, and never see it end.
        self.parent_conn.close()
        # First, since it sets up the log. Then the server, because two threads ask for it below.
        self.config.load()
        self._server = Server(self.config, get_settings())
        super().target(sockets)

    def always_pong(self) -> None:
        """Answer the parent's checks. The end of the pipe means that it is stopping this process, or is gone."""
        try:
            super().always_pong()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(multiprocess.Multiprocess):
    """Starts `config.workers` processes, replaces those that die or hang, and stops them with itself."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        super().__init__(config, sockets)
        if ignores_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @property
    def failed_to_start(self) -> bool:
        """Whether a process could not start, which is why all have been stopped."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def handle_hup(self) -> None:
        """Stop: as one process does when its terminal is closed."""
        self.handle_term()


def serve(config: Config) -> bool:
    """Serve until a signal; returns whether the processes could start. Raises `OSError` if it cannot listen."""
    listeners = asyncio.run(listen(config.host, config.port, config.backlog))
    # uvicorn has no parameter for it. The child processes import this module, and so get the same class.
    multiprocess.Process = Process  # type: ignore[misc]
    supervisor = Supervisor(config, listeners)
    supervisor.run()
    return not supervisor.failed_to_start
