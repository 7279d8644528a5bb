"""How many waiting orders one worker process confirms: `python -m benchmarks.process_orders`."""

import argparse
import sys
import time
from itertools import pairwise
from typing import Any

import psycopg
from redis import Redis

from benchmarks.report import Measured, Target, percentile, report
from benchmarks.shop import open_shop, place_waiting, release_waiting
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_worker
from benchmarks.usage import Meter, peak_rss_mib
from services.keys import Keys

_WANTED_RATE = 2000.0
_MOST_MEMORY_MIB = 200.0
_LONGEST_SECONDS = 1800.0

# A batch is one transaction, and the rows that it wrote carry the transaction's id.
_BATCHES = """
    SELECT extract(epoch FROM max(created_at))::float FROM order_transitions WHERE to_status = 'confirmed'
    GROUP BY xmin::text ORDER BY 1
"""


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        place_waiting(url, open_shop(url, options.buyers), options.orders, options.items)
        plain = _plain(stage, options)
        stage.clone("shop", "service")
        worker = run_worker(stage, "service", "Waybill worker", options.orders, options.batch_size)
    targets = [
        Target(f"at least {_WANTED_RATE:,.0f} orders/s for one worker process", worker.rate >= _WANTED_RATE),
        Target(
            f"worker memory below {_MOST_MEMORY_MIB:.0f} MiB with {options.orders:,} waiting events",
            worker.peak_rss_mib < _MOST_MEMORY_MIB,
        ),
    ]
    report(
        f"Processing {options.orders:,} waiting orders of {options.items} items, in batches of {options.batch_size}",
        [plain, worker],
        targets,
        ["p50 and p99 are of one batch. The books of both databases were recounted afterwards and balance."],
        as_json=options.json,
    )
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process_orders", description=__doc__)
    parser.add_argument("--orders", type=int, default=20_000, help="waiting orders (default: 20000)")
    parser.add_argument("--items", type=int, default=3, help="lines per order (default: 3)")
    parser.add_argument("--buyers", type=int, default=200, help="different buyers (default: 200)")
    parser.add_argument("--batch-size", type=int, default=200, help="the most events per transaction (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _plain(stage: Stage, options: argparse.Namespace) -> Measured:
    stage.clone("shop", "plain")
    url = stage.postgres.url("plain")
    with psycopg.connect(url, autocommit=True) as connection:
        release_waiting(connection)
    job = {"database_url": url, "postgres_pid": stage.postgres_pid, "batch_size": options.batch_size}
    seen = run_beside("benchmarks.plain_process", job)
    _check(stage, "plain", options.orders)
    return Measured(
        name="plain asyncpg",
        done=seen["replies"],
        seconds=seen["seconds"],
        cpu_ms=seen["cpu"] * 1000 / seen["replies"],
        postgres_cpu_ms=seen["postgres_cpu"] * 1000 / seen["replies"],
        others_cpu=(seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"]) / seen["seconds"],
        peak_rss_mib=seen["peak_rss_mib"],
        **_batch_times(sorted(seen["latencies"])),
    )


def run_worker(stage: Stage, database: str, name: str, orders: int, batch_size: int) -> Measured:
    """Have one worker process confirm all the waiting orders in `database`."""
    settings = stage.settings(database, outbox_batch_size=batch_size)
    connect = psycopg.connect(stage.postgres.url(database), autocommit=True)
    with connect as connection, running_worker(stage, settings) as pid, Redis.from_url(settings.redis_url) as redis:
        meter = Meter(pid, stage.postgres_pid)
        release_waiting(connection)
        meter.start()
        redis.lpush(Keys.of(settings).doorbell, b"1")
        _wait_until_empty(connection, stage)
        meter.stop()
        peak = peak_rss_mib(pid)
        ends = [row[0] for row in connection.execute(_BATCHES).fetchall()]
    _check(stage, database, orders)
    return Measured(
        name=name,
        done=orders,
        seconds=meter.seconds,
        cpu_ms=meter.cpu * 1000 / orders,
        postgres_cpu_ms=meter.postgres_cpu * 1000 / orders,
        others_cpu=(meter.machine_cpu - meter.cpu - meter.postgres_cpu) / meter.seconds,
        peak_rss_mib=peak,
        **_batch_times(sorted(later - earlier for earlier, later in pairwise(ends))),
    )


def _batch_times(seconds: list[float]) -> dict[str, Any]:
    return {"p50_ms": percentile(seconds, 0.5) * 1000, "p99_ms": percentile(seconds, 0.99) * 1000}


def _wait_until_empty(connection: psycopg.Connection[tuple[object, ...]], stage: Stage) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    # The last row is deleted last, and the index leads straight to it; a count would read the dead rows over and over.
    while connection.execute("SELECT max(position) FROM outbox").fetchone() != (None,):
        if time.monotonic() > deadline:
            sys.exit(f"the worker did not empty the outbox:\n{stage.log('worker')}")
        time.sleep(0.01)


def _check(stage: Stage, database: str, orders: int) -> None:
    check_books(stage, database)
    with psycopg.connect(stage.postgres.url(database)) as connection:
        statuses: dict[str, int] = dict(
            connection.execute("SELECT status, count(*) FROM orders GROUP BY status").fetchall()
        )
    if statuses != {"confirmed": orders}:
        sys.exit(f"not every order of {database} was confirmed: {statuses}")


if __name__ == "__main__":
    sys.exit(main())
