"""What both embedded servers share: one data folder, one lock, one child, one log."""

import fcntl
import os
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from services.embedded import child
from services.embedded.child import Disguise, EmbeddedServerError, PortTaken
from services.embedded.ports import any_free_port, is_free

START_SECONDS = 60.0
_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.005


def keep_secret(kept: Path, size: int) -> str:
    """The secret in this file; where there is none, `size` random bytes as text, readable by the owner alone."""
    if not kept.exists():
        # Whole or not at all: a half-written password would lock us out of the data for good.
        draft = kept.with_name(f"{kept.name}.new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(size))
        draft.replace(kept)
    return kept.read_text()


class EmbeddedServer(ABC):
    """A server on the loopback address whose files all lie in the folder `data`.

    It can be started again after a stop or a crash, by this object or by another process, on the same data and, by
    this object, on the same port. `port` None: any free one. Usable as a context manager.
    """

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    stop_steps: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data: Path, port: int | None = None, *, durable: bool = True) -> None:
        self.data = data.absolute()
        self.durable = durable
        self.port = port or 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.data / "server.log"
        self.password = ""

    @property
    def running(self) -> bool:
        """Whether the child is alive (not whether it answers)."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the server and return when it takes connections.

        Raises `EmbeddedServerError` with the end of its log where it does not within a minute, where its data are in
        use, or where its port is taken.
        """
        if self.running:
            return self
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            self.data.chmod(0o700)
            lock = self._take_lock()
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise EmbeddedServerError(f"{self.data} cannot hold the data of {self.name}: {error.strerror}") from error
        try:
            self.password = self._keep_password()
            self._prepare()
            self.port = self.port or any_free_port()
            if not is_free(self.port):
                raise PortTaken(f"{self.name}: port {self.port} is taken")
            # The server and all it forks keep the lock for as long as one of them lives, also when we are gone.
            self.process = child.spawn(
                self._command(),
                cwd=self.data,
                log=self.log,
                death_signal=self.death_signal,
                environment=self._environment(),
                disguise=self._disguise(),
                pass_fds=[lock],
            )
        finally:
            os.close(lock)
        self._wait_until_ready(self.process)
        return self

    def stop(self) -> None:
        """Stop the server in an orderly way, by force where it does not leave. Nothing happens where it is stopped."""
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
        """Make the data ready for a start; we hold the lock."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The server's command line."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the process just started takes connections."""

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
                # What a killed server has forked takes a moment to notice and leave.
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise EmbeddedServerError(
                        f"{self.data} is in use: another {self.name} is running on it. Stop that one, or choose "
                        "another data folder"
                    ) from None
                time.sleep(0.05)
            else:
                return lock

    def _keep_password(self) -> str:
        return keep_secret(self.data / "password", 24)

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if process.poll() is not None:
                raise EmbeddedServerError(
                    f"{self.name} did not start (exit code {process.returncode}). "
                    f"The end of its log, {self.log}:\n{child.tail(self.log)}"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedServerError(
                    f"{self.name} was not ready after {START_SECONDS:.0f} s. "
                    f"The end of its log, {self.log}:\n{child.tail(self.log)}"
                )
            time.sleep(_POLL_SECONDS)
