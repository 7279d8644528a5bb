"""CPU time and memory of running processes, read from /proc; the benchmarks need Linux."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far, in steps of 10 ms."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK


def family_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, including those that have exited."""
    fields = _stat(pid)
    total = sum(int(field) for field in fields[11:15]) * _TICK
    for child in _children(pid):
        try:
            total += cpu_seconds(child)
        except FileNotFoundError:
            continue
    return total


def peak_rss_mib(pid: int) -> float:
    """The peak memory of the process so far."""
    return _status_mib(pid, "VmHWM:")


def rss_mib(pid: int) -> float:
    """The current memory of the process."""
    return _status_mib(pid, "VmRSS:")


def machine_cpu_seconds() -> float:
    """The total time that all processors have been busy so far."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) * _TICK


@dataclass(slots=True)
class Meter:
    """CPU seconds of one process, of PostgreSQL and of the whole machine between `start` and `stop`.

    `others` are further processes that are counted together with the first.
    """

    pid: int
    postgres_pid: int
    seconds: float = 0.0
    cpu: float = 0.0
    postgres_cpu: float = 0.0
    machine_cpu: float = 0.0
    others: Sequence[int] = ()

    def start(self) -> None:
        self.seconds = -time.perf_counter()
        self.cpu = -self._cpu()
        self.postgres_cpu = -family_cpu_seconds(self.postgres_pid)
        self.machine_cpu = -machine_cpu_seconds()

    def stop(self) -> None:
        self.seconds += time.perf_counter()
        self.cpu += self._cpu()
        self.postgres_cpu += family_cpu_seconds(self.postgres_pid)
        self.machine_cpu += machine_cpu_seconds()

    def _cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in (self.pid, *self.others))


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} reports no memory usage")


def _stat(pid: int) -> list[str]:
    # The command's name is in parentheses and may contain anything, including spaces and parentheses.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children
