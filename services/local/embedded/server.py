"""What both embedded servers share: one data folder, one lock, one child, one log."""

import fcntl
import logging
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from services.cli.files import Say, keep_secret
from services.local.embedded import child
from services.local.embedded.child import Disguise, EmbeddedServerError, PortTaken
from services.local.embedded.ports import any_free_port, is_free

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.005
_PORTS_TRIED = 20


class EmbeddedServer(ABC):
    """A server on the loopback address with all its files in the folder `data`.

    It can be started again after a stop or a crash, by this object or by another process, on the same data and, by
    this object, on the same port. If `port` is None, it uses any free one. `say` reports what was damaged and had to be
    replaced. Usable as a context manager.
    """

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    stop_steps: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data: Path, port: int | None = None, *, durable: bool = True, say: Say = logger.warning) -> None:
        self.data = data.absolute()
        self.durable = durable
        self.say = say
        self.port = port or 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.data / "server.log"
        self.password = ""

    @property
    def running(self) -> bool:
        """Whether the child is alive (not whether it answers)."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the server and return when it accepts connections.

        Raises `EmbeddedServerError` with the end of its log if it does not do so within a minute, if its data is in
        use, if disk, descriptors or processes run out, or (`PortTaken`) if its port is taken.
        """
        if self.running:
            return self
        try:
            self._start()
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise EmbeddedServerError(
                f"cannot start {self.name} in {self.data}: {error.strerror or error}{where}"
            ) from error
        return self

    def _start(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o700)
        # The server and its children hold the lock as long as one of them lives, even after we are gone.
        lock = self._take_lock()
        try:
            # Kept across restarts whatever happens to the file: other processes have it in their URL.
            if not self.password:
                new = f"{self.name} gets a new password"
                self.password = keep_secret(self.data / "password", 24, self.say, new)
            if self.port:
                self._launch(lock)
            else:
                self._launch_on_any_port(lock)
        finally:
            os.close(lock)

    def _launch_on_any_port(self, lock: int) -> None:
        for left in reversed(range(_PORTS_TRIED)):
            self.port = any_free_port()
            try:
                self._launch(lock)
            except PortTaken:
                # Another program was faster.
                self.port = 0
                if not left:
                    raise
            else:
                return

    def _launch(self, lock: int) -> None:
        """Start the process on `port` and wait until it is ready. Raises `EmbeddedServerError` and `OSError`."""
        self._prepare()
        if not is_free(self.port):
            raise PortTaken(f"{self.name}: port {self.port} is taken")
        since = child.log_size(self.log)
        self.process = child.spawn(
            self._command(),
            cwd=self.data,
            log=self.log,
            death_signal=self.death_signal,
            environment=self._environment(),
            disguise=self._disguise(),
            pass_fds=[lock],
        )
        self._wait_until_ready(self.process, since)

    def stop(self) -> None:
        """Stop the server gracefully, or by force if it does not exit. Does nothing if it is not running."""
        if self.process is not None:
            child.stop(self.process, *self.stop_steps)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the data for a start; we hold the lock."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The server's command line."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the process that was just started accepts connections."""

    def _disguise(self) -> Disguise | None:
        return None

    def _environment(self) -> dict[str, str]:
        # A locale or PG... variable of the caller's shell would change how the server behaves.
        unwanted = ("LC_", "LANG", "PG", "REDIS", "TZ")
        return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)} | {"LC_ALL": "C"}

    def _take_lock(self) -> int:
        lock = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # The children of a killed server take a moment to notice and exit.
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise EmbeddedServerError(
                        f"{self.data} is in use by another {self.name}. Stop that one, or choose another data folder"
                    ) from None
                time.sleep(0.05)
            else:
                return lock

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", since: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if process.poll() is not None:
                said = child.tail(self.log, since=since)
                if child.port_was_taken(said):
                    raise PortTaken(f"{self.name}: port {self.port} is taken")
                raise EmbeddedServerError(
                    f"{self.name} did not start (exit code {process.returncode}). "
                    f"The end of its log, {self.log}:\n{said or '(nothing; is the disk full?)'}"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedServerError(
                    f"{self.name} was not ready after {START_SECONDS:.0f} s. "
                    f"The end of its log, {self.log}:\n{child.tail(self.log, since=since)}"
                )
            time.sleep(_POLL_SECONDS)
