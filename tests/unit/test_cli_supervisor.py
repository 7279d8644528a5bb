"""What dies is started again, with pauses that grow; what is to stop stops in order, by force if need be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.supervisor import Program, Stop, Supervisor, how_it_ended


class Changes:
    """Counts the calls, and says when it is enough."""

    def __init__(self, stop: Stop, enough: int) -> None:
        self.stop = stop
        self.enough = enough
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(time.monotonic())
        self.stop.wanted = len(self.times) >= self.enough


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    made: list[Program] = []

    def make(script: str) -> Program:
        made.append(Program("sleeper", ["-c", script], tmp_path / f"{len(made)}.log", os.environ.copy()))
        return made[-1]

    yield make
    for each in made:
        if each.process is not None:
            each.process.kill()
            each.process.wait()


def pid(program: Program) -> int:
    assert program.process is not None
    return program.process.pid


def test_a_killed_program_is_started_again_and_the_facts_are_told(
    program: Callable[[str], Program], capsys: pytest.CaptureFixture[str]
) -> None:
    stop = Stop()
    supervisor = Supervisor(stop, Changes(stop, enough=1))
    sleeper = program("import time; time.sleep(60)")
    supervisor.start(sleeper)
    first = pid(sleeper)
    os.kill(first, signal.SIGKILL)

    supervisor.watch()

    assert pid(sleeper) != first
    said = capsys.readouterr().out
    assert f"sleeper (process {first}) was killed by SIGKILL; started again now" in said
    assert f"sleeper runs again (process {pid(sleeper)})" in said


def test_a_program_that_keeps_dying_is_started_with_growing_pauses(program: Callable[[str], Program]) -> None:
    stop = Stop()
    changes = Changes(stop, enough=3)
    supervisor = Supervisor(stop, changes)
    supervisor.start(program("raise SystemExit(3)"))

    supervisor.watch()

    first, second, third = changes.times
    assert 0.5 <= second - first < third - second


def test_stopping_ends_all_programs(program: Callable[[str], Program]) -> None:
    stop = Stop()
    supervisor = Supervisor(stop, lambda: None)
    sleepers = [program("import time; time.sleep(60)") for _ in range(2)]
    for sleeper in sleepers:
        supervisor.start(sleeper)
    supervisor.stop_all()
    assert [sleeper.process and sleeper.process.returncode for sleeper in sleepers] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize("hurry", [True, False])
def test_a_program_that_does_not_leave_is_killed(
    program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch, hurry: bool
) -> None:
    monkeypatch.setattr("services.cli.supervisor.STOP_SECONDS", 60.0 if hurry else 0.3)
    stop = Stop()
    supervisor = Supervisor(stop, lambda: None)
    stubborn = program("import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)")
    supervisor.start(stubborn)
    while not stubborn.log.read_text():
        time.sleep(0.01)
    stop.hurry = hurry
    started = time.monotonic()
    supervisor.stop_all()
    assert stubborn.process is not None
    assert stubborn.process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 5


def test_signals_are_noted_and_a_second_one_hurries() -> None:
    script = (
        "import os, signal\n"
        "from services.cli.supervisor import Stop\n"
        "stop = Stop()\n"
        "stop.listen()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stop.wanted and not stop.hurry\n"
        "stop.stopping = True\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "assert stop.hurry\n"
        "stop.stopping = False\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('broken off')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "broken off\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (-9, "was killed by SIGKILL"), (-250, "was killed by signal 250")],
)
def test_how_a_process_ended(code: int, words: str) -> None:
    assert how_it_ended(code) == words
