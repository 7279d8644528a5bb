"""Ten million waiting events against ten thousand, and a worker's memory over all of them."""

import os
import signal
import time
from collections.abc import Sequence
from itertools import accumulate

import psycopg
from redis import Redis

from benchmarks.outbox.bench import Bench, Drained, Worker, middle
from benchmarks.outbox.events import Events, Log, fill, tidy, write_log
from benchmarks.outbox.table import Line, at_least, at_most
from benchmarks.outbox.timeline import Batch, rate
from benchmarks.usage import rss_mib
from services.outbox.doorbell import KEY as DOORBELL

_LARGEST_MIB = 150.0
_FLAT_MIB = 10.0
_SMALL_ROUNDS = 20
_MEMORY_SECONDS = 0.5


def measure(bench: Bench) -> list[Line]:
    sizes = bench.sizes
    small = _small(bench)
    large, memory = _large(bench)
    large_rate = rate(_first(large.batches, sizes.backlog_measured))
    start, middle_one, end = memory[len(memory) // 20], memory[len(memory) // 2], memory[-1]
    peak = large.cost.peak_rss_mib or 0.0
    return [
        Line(f"{sizes.small_backlog:,} waiting, drained {_SMALL_ROUNDS} times", small, "events/s"),
        Line(
            f"{sizes.backlog:,} waiting: the first {sizes.backlog_measured:,} of them",
            large_rate,
            "events/s",
            cost=large.cost,
        ),
        Line(f"{sizes.backlog:,} waiting to {sizes.small_backlog:,} waiting", large_rate / small, "x", at_least(0.9)),
        Line(
            f"memory of a worker over {sizes.backlog:,} events: peak",
            peak,
            "MiB",
            at_most(_LARGEST_MIB),
            note=f"{start:.1f} MiB after a twentieth, {middle_one:.1f} half-way, {end:.1f} at the end",
        ),
        Line("… growth from a twentieth of the way to the end", end - start, "MiB", at_most(_FLAT_MIB)),
    ]


def _small(bench: Bench) -> float:
    """A worker that is warm drains the small backlog again and again; the rate of the middle round."""
    number = bench.sizes.small_backlog
    with bench.database() as name:
        url = bench.stage.postgres.url(name)
        with psycopg.connect(url, autocommit=True) as connection:
            log = write_log(connection, Events(number * _SMALL_ROUNDS, bench.sizes.aggregates))
            with bench.worker(name) as worker, Redis.from_url(bench.stage.redis.url()) as redis:
                rates = [_small_round(bench, worker, redis, connection, log, n) for n in range(_SMALL_ROUNDS)]
        bench.check(name, [worker], number * _SMALL_ROUNDS)
    return middle(rates)


def _small_round(
    bench: Bench,
    worker: Worker,
    redis: Redis,
    connection: psycopg.Connection[tuple[object, ...]],
    log: Log,
    n: int,
) -> float:
    number = bench.sizes.small_backlog
    # Held while the rows come in and are vacuumed, as those of the large backlog are.
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        log.release(connection, n * number, number)
        tidy(connection)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    redis.lpush(DOORBELL, b"1")
    return rate(_heart(bench.follow(worker, (n + 1) * number).batches))


def _heart(batches: Sequence[Batch]) -> Sequence[Batch]:
    """All but the first and the last fifth: every loop is under way by then, and none has run dry."""
    edge = len(batches) // 5
    return batches[edge : len(batches) - edge]


def _large(bench: Bench) -> tuple[Drained, list[float]]:
    """One worker over the large backlog, and its memory every half second."""
    sizes = bench.sizes
    memory: list[float] = []
    with bench.database() as name:
        fill(bench.stage.postgres.url(name), Events(sizes.backlog, sizes.aggregates))
        with bench.worker(name) as worker:
            looked_at = 0.0

            def look() -> None:
                nonlocal looked_at
                if time.monotonic() - looked_at >= _MEMORY_SECONDS:
                    looked_at = time.monotonic()
                    memory.append(rss_mib(worker.pid))

            drained = bench.follow(worker, sizes.backlog, look)
            memory.append(rss_mib(worker.pid))
        bench.check(name, [worker], sizes.backlog)
    return drained, memory


def _first(batches: Sequence[Batch], number: int) -> Sequence[Batch]:
    """The batches of the first `number` events."""
    totals = accumulate(batch.processed for batch in batches)
    return batches[: 1 + next(n for n, total in enumerate(totals) if total >= number)]
