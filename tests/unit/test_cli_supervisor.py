"""Programs that die are restarted with growing pauses; stopping ends all of them in order, by force if need be."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.local.embedded import child
from services.local.supervisor import Program, Stop, Supervisor, backoff, how_it_ended


class Changes:
    """Counts the calls, and stops the supervisor after `enough` of them."""

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


def test_a_killed_program_is_started_again_and_the_facts_are_updated(
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
    assert f"sleeper (process {first}) was killed by SIGKILL; restarting now" in said
    assert f"sleeper is running again (process {pid(sleeper)})" in said


def test_a_program_that_keeps_dying_is_started_with_growing_pauses(program: Callable[[str], Program]) -> None:
    stop = Stop()
    changes = Changes(stop, enough=3)
    supervisor = Supervisor(stop, changes)
    supervisor.start(program("raise SystemExit(3)"))

    supervisor.watch()

    first, second, third = changes.times
    assert 0.5 <= second - first < third - second


def test_restart_pauses_grow_up_to_a_limit_however_long_it_takes() -> None:
    assert [backoff(failures) for failures in (0, 1, 2)] == [0.5, 1.0, 2.0]
    assert backoff(100_000) == 15.0


class Refusal:
    """A listener that finds the disk full at first."""

    def __init__(self, changes: Changes, times: int) -> None:
        self.changes = changes
        self.left = times

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.changes()


def test_facts_that_a_full_disk_keeps_from_being_written_are_written_later(
    program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.local.supervisor._TELL_AGAIN_SECONDS", 0.1)
    stop = Stop()
    changes = Changes(stop, enough=1)
    supervisor = Supervisor(stop, Refusal(changes, times=3))
    sleeper = program("import time; time.sleep(60)")
    supervisor.start(sleeper)
    os.kill(pid(sleeper), signal.SIGKILL)

    supervisor.watch()

    assert len(changes.times) == 1
    assert sleeper.process is not None
    assert sleeper.process.poll() is None
    assert capsys.readouterr().out.count("No space left on device") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs the death signal, not a watchdog that needs descriptors")
def test_a_program_that_cannot_be_started_for_lack_of_descriptors_is_started_later(
    program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    stop = Stop()
    supervisor = Supervisor(stop, Changes(stop, enough=1))
    sleeper = program("import time; time.sleep(60)")
    supervisor.start(sleeper)
    first = pid(sleeper)
    os.kill(first, signal.SIGKILL)
    rounds = iter(range(100))

    def a_round_passes(_: float) -> None:
        # The third round is the first that finds descriptors.
        if next(rounds) == 2:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    monkeypatch.setattr("services.local.supervisor.backoff", lambda _: 0.0)
    monkeypatch.setattr("services.local.supervisor.time.sleep", a_round_passes)
    while sleeper.process is not None and sleeper.process.poll() is None:
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        supervisor.watch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert pid(sleeper) != first
    said = capsys.readouterr().out
    assert said.count("cannot restart sleeper: ") == 1
    assert "Too many open files" in said
    assert f"sleeper is running again (process {pid(sleeper)})" in said


def test_logs_stay_within_bounds_while_their_writers_run(
    program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "LOG_LIMIT", 100_000)
    stop = Stop()
    supervisor = Supervisor(stop, lambda: None)
    # Two and a half times the limit in pieces, each of which the supervisor has time to see.
    talker = program(
        "import sys, time\n"
        "for number in range(2500):\n"
        "    print(f'{number:099d}')\n"
        "    if number % 100 == 99: sys.stdout.flush(); time.sleep(0.1)\n"
        "print('the end', flush=True)\n"
        "time.sleep(60)\n"
    )
    supervisor.start(talker)
    old = talker.log.with_name(f"{talker.log.name}.old")
    largest = 0

    def a_round_passes(_: float) -> None:
        nonlocal largest
        largest = max(largest, talker.log.stat().st_size)
        stop.wanted = "the end" in child.tail(talker.log, 100)
        real_sleep(0.01)

    real_sleep = time.sleep
    monkeypatch.setattr("services.local.supervisor.time.sleep", a_round_passes)
    supervisor.watch()
    supervisor.stop_all()

    assert largest < 200_000
    assert old.stat().st_size <= 200_000
    assert old.stat().st_mode & 0o777 == 0o600
    # Nothing between the older lines and the newest is missing.
    numbers = [int(line) for line in (old.read_text() + talker.log.read_text()).splitlines()[1:-1]]
    assert numbers == list(range(numbers[0], 2500))
    assert numbers[0] > 0


def test_on_a_full_disk_the_last_lines_of_a_log_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOG_LIMIT", 1_000_000)
    log = tmp_path / "a.log"
    log.write_text("".join(f"{number:099d}\n" for number in range(20_000)))
    # A stand-in for the disk: what is kept beside the log may not be written.
    (tmp_path / "a.log.old").symlink_to("/dev/full")
    child.bound_log(log)
    assert log.read_text().splitlines()[-1] == f"{19_999:099d}"
    assert log.stat().st_size == 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_the_last_words_are_those_since_the_last_start(program: Callable[[str], Program]) -> None:
    sleeper = program("print('said')")
    sleeper.log.write_text("before\n")
    sleeper.start()
    assert sleeper.process is not None
    sleeper.process.wait()
    assert sleeper.last_words() == "said"
    # Older lines have been moved away in the meantime.
    sleeper.log.write_text("new")
    assert sleeper.last_words() == "new"


def test_a_full_disk_under_the_output_is_survived_and_later_lines_are_written() -> None:
    script = (
        "import os\n"
        "from services.cli.console import say\n"
        "kept = os.dup(1)\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "say('lost')\n"
        "os.dup2(kept, 1)\n"
        "say('written')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "written"


def test_stopping_ends_all_programs(program: Callable[[str], Program]) -> None:
    stop = Stop()
    supervisor = Supervisor(stop, lambda: None)
    sleepers = [program("import time; time.sleep(60)") for _ in range(2)]
    for sleeper in sleepers:
        supervisor.start(sleeper)
    supervisor.stop_all()
    assert [sleeper.process and sleeper.process.returncode for sleeper in sleepers] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize("hurry", [True, False])
def test_a_program_that_does_not_exit_is_killed(
    program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch, hurry: bool
) -> None:
    monkeypatch.setattr("services.local.supervisor.STOP_SECONDS", 60.0 if hurry else 0.3)
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
        "from services.local.supervisor import Stop\n"
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
