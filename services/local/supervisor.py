"""Start processes in order, restart them when they die, stop them in reverse order."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeAlias

from services.cli.console import say
from services.local.embedded import child
from services.local.embedded.server import EmbeddedServer
from services.logs import Repeats

_P = ParamSpec("_P")

STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_BACKOFF_FIRST, _BACKOFF_LAST = 0.5, 15.0
# A process that has run this long is considered healthy: if it dies, it is restarted immediately.
_WELL_AFTER = 30.0
_TELL_AGAIN_SECONDS = 5.0
"""Seconds until the next attempt to report new processes, after one that failed."""


class Program:
    """One of our own commands as a child process, with its output in a log file."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.arguments = arguments
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = environment
        self._since = 0

    def start(self) -> None:
        """Raises `EmbeddedServerError` if there is not enough disk, descriptors or processes."""
        self._since = child.log_size(self.log)
        # -P: a folder named `services` in the current directory must not be taken for ours.
        self.process = child.spawn(
            [sys.executable, "-P", *self.arguments],
            cwd=Path.cwd(),
            log=self.log,
            death_signal=signal.SIGTERM,
            environment=self._environment,
        )

    def stop(self) -> None:
        if self.process is not None:
            child.stop(self.process, (signal.SIGTERM, STOP_SECONDS))

    def last_words(self) -> str:
        """The end of its log since its last start."""
        return child.tail(self.log, since=self._since)


Part: TypeAlias = Program | EmbeddedServer
"""A process that is kept running."""


class Stop:
    """Notes SIGINT, SIGTERM and SIGHUP. A second one during startup interrupts it immediately."""

    def __init__(self) -> None:
        self.wanted = False
        self.hurry = False
        self.stopping = False

    def listen(self) -> None:
        """Handle the signals. Must be called in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.hurry = self.wanted
        self.wanted = True
        if self.hurry and not self.stopping:
            raise KeyboardInterrupt


@dataclass
class _Watched:
    part: Part
    started: float
    deaths: int = 0
    start_at: float | None = None


@dataclass
class Supervisor:
    """Keeps parts running, and their logs within bounds. No failure of a part or a log stops it.

    `changed` is called when a part gets a new process, and called again later if it raises.
    """

    stop: Stop
    changed: Callable[[], None]
    _watched: list[_Watched] = field(default_factory=list)
    _repeats: Repeats = field(default_factory=Repeats)
    _tell_at: float | None = None

    def start(self, part: Part) -> None:
        """Start a part and watch it from now on. Raises `EmbeddedServerError` if it does not start."""
        self._watched.append(_Watched(part, time.monotonic()))
        part.start()

    def watch(self) -> None:
        """Restart parts that die, until a stop is requested."""
        while not self.stop.wanted:
            for watched in self._watched:
                self._try(f"cannot restart {watched.part.name}", self._look_after, watched)
                self._try(f"cannot shorten the log of {watched.part.name}", child.bound_log, watched.part.log)
            self._tell()
            time.sleep(_LOOK_SECONDS)

    def tell_of_changes(self) -> None:
        """Call `changed` now; if it fails, try again while we watch."""
        self._tell_at = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._tell_at is None or now < self._tell_at:
            return
        told = self._try("cannot report new processes to the other commands; retrying", self.changed)
        self._tell_at = None if told else now + _TELL_AGAIN_SECONDS

    def _try(self, trouble: str, act: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> bool:
        """Whether it succeeded; otherwise print the reason, at most once a minute."""
        try:
            act(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (a full disk, no descriptors, no processes: the rest continues)
            left_out = self._repeats.left_out(trouble)
            if left_out is not None:
                say(
                    f"{trouble}: {error}"
                    + (f" (and {left_out} more times since this was last reported)" * bool(left_out))
                )
            return False
        return True

    def stop_all(self) -> None:
        """Stop our own programs concurrently, then the servers in reverse order."""
        self.stop.stopping = True
        programs = [watched.part for watched in self._watched if isinstance(watched.part, Program)]
        self._stop_programs(programs)
        for watched in reversed(self._watched):
            if isinstance(watched.part, EmbeddedServer):
                watched.part.stop()

    def _stop_programs(self, programs: Sequence[Program]) -> None:
        running = [program.process for program in programs if program.process and program.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while any(process.poll() is None for process in running):
            if self.stop.hurry or time.monotonic() > deadline:
                for process in running:
                    process.kill()
            time.sleep(0.02)

    def _look_after(self, watched: _Watched) -> None:
        part, process, now = watched.part, watched.part.process, time.monotonic()
        if watched.start_at is None:
            if process is None or process.poll() is None:
                return
            if now - watched.started > _WELL_AFTER:
                watched.deaths = 0
            delay = 0.0 if watched.deaths == 0 else backoff(watched.deaths - 1)
            watched.deaths += 1
            watched.start_at = now + delay
            when = f"in {delay:g} s" if delay else "now"
            say(f"{part.name} (process {process.pid}) {how_it_ended(process.returncode)}; restarting {when}")
            say(f"  log: {part.log}")
        if now < watched.start_at:
            return
        watched.started = now
        try:
            part.start()
        except Exception:
            watched.deaths += 1
            watched.start_at = time.monotonic() + backoff(watched.deaths)
            raise
        watched.start_at = None
        assert part.process is not None
        say(f"{part.name} is running again (process {part.process.pid})")
        self.tell_of_changes()


def backoff(failures: int) -> float:
    """Seconds until the next attempt: twice as long after each failure, up to a limit."""
    # Limit the exponent: after a night with a full disk, there are thousands of failures.
    return min(_BACKOFF_FIRST * 2.0 ** min(failures, 10), _BACKOFF_LAST)


def how_it_ended(return_code: int) -> str:
    """In words: an exit code, or the signal that killed it."""
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    try:
        return f"was killed by {signal.Signals(-return_code).name}"
    except ValueError:
        return f"was killed by signal {-return_code}"
