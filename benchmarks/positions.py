"""What a process spends on asking the primary for its position after a commit: `python -m benchmarks.positions`.

With a read replica, every request that writes asks. Requests that commit at the same time share a question.
"""

import argparse
import asyncio
import os
import time

from benchmarks.report import Measured, percentile, report
from benchmarks.stage import Stage, open_stage
from benchmarks.usage import Meter, peak_rss_mib
from services.database import close, make_engine
from services.replica import Positions
from services.settings import Environment, Settings


def main() -> int:
    options = _options()
    with open_stage() as stage:
        runs = asyncio.run(_measure(stage, options.asked))
    report("Position after a commit", runs, [], [], as_json=options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.positions", description=__doc__)
    parser.add_argument("--asked", type=int, default=4000, help="how many requests ask (default: 4000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


async def _measure(stage: Stage, asked: int) -> list[Measured]:
    settings = Settings(
        _env_file=None, environment=Environment.development, database_url=stage.postgres.url("postgres")
    )
    engine = make_engine(settings, "benchmark", pool_size=1)
    try:
        positions = Positions(engine)
        await positions.now()
        return [await _at_once(stage, positions, asked, number) for number in (1, 5, 20)]
    finally:
        await close(engine)


async def _at_once(stage: Stage, positions: Positions, asked: int, number: int) -> Measured:
    meter = Meter(os.getpid(), stage.postgres_pid)
    times = []
    meter.start()
    for _ in range(asked // number):
        before = time.perf_counter()
        found = await asyncio.gather(*(positions.now() for _ in range(number)))
        times.append(1000 * (time.perf_counter() - before))
        if None in found:
            raise RuntimeError("the primary did not say its position")
    meter.stop()
    times.sort()
    done = len(times) * number
    others = meter.machine_cpu - meter.cpu - meter.postgres_cpu
    return Measured(
        name=f"{number} at once",
        done=done,
        seconds=meter.seconds,
        cpu_ms=1000 * meter.cpu / done,
        postgres_cpu_ms=1000 * meter.postgres_cpu / done,
        others_cpu=max(0.0, others / meter.seconds),
        p50_ms=percentile(times, 0.5),
        p99_ms=percentile(times, 0.99),
        peak_rss_mib=peak_rss_mib(meter.pid),
        unit="positions",
    )


if __name__ == "__main__":
    raise SystemExit(main())
