"""Shared by the runs of all peers: the time and cost of a drain, and the report."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.usage import Meter, peak_rss_mib

_LOOK_SECONDS = 0.01
_LONGEST_SECONDS = 300.0


@dataclass(slots=True)
class Drain:
    """Counts the jobs as they run: a job only calls `count`."""

    jobs: int
    meter: Meter
    counted: int = 0

    def count(self) -> None:
        if not self.counted:
            self.meter.start()
        self.counted += 1

    async def wait(self, acknowledged: Callable[[], Awaitable[bool]]) -> None:
        """Return when every job has run and `acknowledged` says that the server has recorded it."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while self.counted < self.jobs or not await acknowledged():
            if time.monotonic() > deadline:
                sys.exit(f"{self.counted:,} of {self.jobs:,} jobs ran in {_LONGEST_SECONDS:g} s")
            await asyncio.sleep(_LOOK_SECONDS)
        self.meter.stop()


def tell(package: str, how: str, run: Callable[[dict[str, Any], Drain], Coroutine[Any, Any, None]]) -> None:
    """Run the job and print the results."""
    import uvloop

    job = json.load(sys.stdin)
    drain = Drain(job["jobs"], Meter(os.getpid(), job["postgres_pid"]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job, drain))
    if drain.counted != drain.jobs:
        sys.exit(f"{drain.jobs:,} jobs were waiting, but {drain.counted:,} ran")
    meter = drain.meter
    seen = {
        "version": version(package),
        "how": how,
        "seconds": meter.seconds,
        "cpu": meter.cpu,
        "postgres_cpu": meter.postgres_cpu,
        "machine_cpu": meter.machine_cpu,
        "peak_rss_mib": peak_rss_mib(os.getpid()),
    }
    print(json.dumps(seen))
