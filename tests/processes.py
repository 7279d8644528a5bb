"""Waybill's own processes, started as an operator would, on a test's servers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from services.local.embedded import child
from services.local.embedded.ports import any_free_port
from services.settings import Settings

ROOT = Path(__file__).parent.parent


class Running:
    """A process that can be killed and started again. The output of all its runs is in `log`."""

    def __init__(self, arguments: Sequence[str], settings: Settings, log: Path) -> None:
        self._command = [sys.executable, *arguments]
        self._environment = environment_of(settings)
        self.log = log
        self.process = self._spawn()

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: no chance to finish anything."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float) -> int:
        """Send SIGTERM; return the exit code. Raises `subprocess.TimeoutExpired` if it does not exit in time."""
        self.process.terminate()
        return self.process.wait(seconds)

    def start_again(self) -> None:
        assert not self.lives
        self.process = self._spawn()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        return child.spawn(
            self._command, cwd=ROOT, log=self.log, death_signal=signal.SIGKILL, environment=self._environment
        )


@contextmanager
def running(arguments: Sequence[str], settings: Settings, log: Path) -> Iterator[Running]:
    """A process of `python ARGUMENTS` with these settings, killed by its id on exit."""
    started = Running(arguments, settings, log)
    try:
        yield started
    finally:
        child.stop(started.process, (signal.SIGTERM, 15.0))


@contextmanager
def running_worker(settings: Settings, log: Path) -> Iterator[Running]:
    with running(["-m", "worker"], settings, log) as worker:
        yield worker


@contextmanager
def running_api(settings: Settings, log: Path) -> Iterator[tuple[Running, str]]:
    """The API and its address. It may not be ready yet."""
    port = any_free_port()
    with running(["-m", "services.cli", "api", "--port", str(port)], settings, log) as api:
        yield api, f"http://127.0.0.1:{port}"


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment that makes a process run with these settings, and with none of the developer's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    secrets = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    values = settings.model_dump(mode="json") | secrets
    return kept | {f"WAYBILL_{name.upper()}": str(value) for name, value in values.items() if value is not None}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.05)
