"""CPU time and memory of running processes, read from /proc: the benchmarks need Linux."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far; in steps of 10 ms."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK


def family_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, those that have left included."""
    fields = _stat(pid)
    total = sum(int(field) for field in fields[11:15]) * _TICK
    for child in _children(pid):
        try:
            total += cpu_seconds(child)
        except FileNotFoundError:
            continue
    return total


def peak_rss_mib(pid: int) -> float:
    """The most memory the process has held at a time so far."""
    return _status_mib(pid, "VmHWM:")


def rss_mib(pid: int) -> float:
    """The memory the process holds now."""
    return _status_mib(pid, "VmRSS:")


def machine_cpu_seconds() -> float:
    """Time that all processors together were busy so far."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) * _TICK


@dataclass(slots=True)
class Meter:
    """CPU seconds of one process, of PostgreSQL and of the whole machine between `start` and `stop`."""

    pid: int
    postgres_pid: int
    seconds: float = 0.0
    cpu: float = 0.0
    postgres_cpu: float = 0.0
    machine_cpu: float = 0.0

    def start(self) -> None:
        self.seconds = -time.perf_counter()
        self.cpu = -cpu_seconds(self.pid)
        self.postgres_cpu = -family_cpu_seconds(self.postgres_pid)
        self.machine_cpu = -machine_cpu_seconds()

    def stop(self) -> None:
        self.seconds += time.perf_counter()
        self.cpu += cpu_seconds(self.pid)
        self.postgres_cpu += family_cpu_seconds(self.postgres_pid)
        self.machine_cpu += machine_cpu_seconds()


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} shows no memory")


def _stat(pid: int) -> list[str]:
    # The command's name stands in brackets and may hold anything, spaces and brackets too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children
