"""A worker of the same host is dead if its process is; where that cannot be seen, if it has been silent for long."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from worker.neighbours import identity, is_dead

SILENT, HEARD = 21.0, 1.0


@pytest.fixture
def other() -> "Iterator[subprocess.Popen[bytes]]":
    """Another process that runs until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def identity_of(pid: int) -> dict[str, Any]:
    """What the process would say of itself."""
    here = identity()
    assert here is not None
    with open(f"/proc/{pid}/stat") as file:
        return {**here, "started": int(file.read().rpartition(")")[2].split()[19])}


def test_a_running_process_is_not_dead_however_long_it_is_silent(other: "subprocess.Popen[bytes]") -> None:
    theirs = identity_of(other.pid)
    assert not is_dead(other.pid, theirs, SILENT)
    other.send_signal(signal.SIGSTOP)
    assert not is_dead(other.pid, theirs, SILENT), "it hangs, and its health check has to say so"


def test_a_killed_process_is_dead_at_once(other: "subprocess.Popen[bytes]") -> None:
    theirs = identity_of(other.pid)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(other.pid, theirs, HEARD), "also while its parent has not yet asked for its exit code"
    other.wait()
    assert is_dead(other.pid, theirs, HEARD)


def test_another_process_with_the_same_id_is_not_the_same_one(other: "subprocess.Popen[bytes]") -> None:
    theirs = identity_of(other.pid)
    assert is_dead(other.pid, {**theirs, "started": theirs["started"] - 1}, HEARD)


@pytest.mark.parametrize("elsewhere", [{"namespace": "pid:[1]"}, {"boot": "before the restart"}, None])
def test_a_process_that_cannot_be_seen_counts_as_dead_once_it_is_silent(elsewhere: dict[str, str] | None) -> None:
    """As in containers with the same host name, in which each worker is process 1."""
    here = identity()
    assert here is not None
    theirs = None if elsewhere is None else {**here, **elsewhere}
    assert not is_dead(os.getpid(), theirs, HEARD)
    assert is_dead(os.getpid(), theirs, SILENT)
