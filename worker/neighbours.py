"""Tells which other workers of this host have died, so that their successor can delete their rows."""

import os
from pathlib import Path
from typing import Any

from services.outbox.control.service import SILENT

_PROC = Path("/proc")


def identity() -> dict[str, Any] | None:
    """What distinguishes this process from others with the same host name and id; None if the system does not say.

    Process ids are reused. One is meaningful only until the machine restarts, and only to processes in the same
    namespace: containers that share a host name each have a process 1.
    """
    try:
        return {
            "boot": (_PROC / "sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink(_PROC / "self/ns/pid"),
            "started": _started(os.getpid()),
        }
    except OSError:
        return None


def is_dead(pid: int, process: dict[str, Any] | None, silent: float) -> bool:
    """Whether another worker of this host has died; `process` is its `identity`, `silent` the seconds without a beat.

    If the process can be looked up, the answer is certain. Otherwise silence has to be enough: the process ran before
    the machine restarted, or in another container with the same host name. If it is alive after all, for example
    hanging, its row comes back with its next beat.
    """
    here = identity()
    if here is None or process is None or any(process.get(name) != here[name] for name in ("boot", "namespace")):
        return silent > SILENT
    try:
        # Finds it even if /proc hides the processes of other users.
        os.kill(pid, 0)
        return _started(pid) != process.get("started")
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _started(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if it has ended and only its exit code is left."""
    # The name, in parentheses, may contain anything.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
