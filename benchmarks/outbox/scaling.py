"""More workers, when the time is spent on the network and not on the CPU."""

import time

import psycopg

from benchmarks.outbox.bench import Bench
from benchmarks.outbox.events import Events
from benchmarks.outbox.table import Line, at_least
from benchmarks.outbox.timeline import rate_between

_WORKERS = (1, 2, 4, 8)
_WAIT_SECONDS = 0.02
# Few events per batch, and one batch at a time, so that the CPUs of a small machine are not the bottleneck.
_BATCH_SIZE = 10
_CONCURRENCY = 1
_WARMUP_SECONDS = 1.0


def measure(bench: Bench) -> list[Line]:
    """Events per second of all workers together, in a period in which all of them are running."""
    seconds = bench.sizes.scaling_seconds
    most = int(max(_WORKERS) * _BATCH_SIZE / _WAIT_SECONDS * (seconds + 2 * _WARMUP_SECONDS + 5))
    rates = {}
    with bench.filled(Events(most, bench.sizes.aggregates)) as filled:
        for number in _WORKERS:
            with bench.database(filled) as database:
                rates[number] = _rate(bench, database, number, seconds)
    lines = [Line(f"1 worker, a handler that waits {_WAIT_SECONDS * 1000:g} ms a batch", rates[1], "events/s")]
    for number in _WORKERS[1:]:
        linear = rates[number] / (rates[1] * number)
        lines.append(Line(f"… {number} workers, to {number} times that", linear, "x", at_least(0.9)))
    return lines


def _rate(bench: Bench, database: str, number: int, seconds: float) -> float:
    how = {"wait": _WAIT_SECONDS, "outbox_batch_size": _BATCH_SIZE, "outbox_concurrency": _CONCURRENCY}
    with bench.workers(database, number, **how) as workers:
        for worker in workers:
            worker.wait_for(_BATCH_SIZE)
        time.sleep(_WARMUP_SECONDS)
        start = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
    for worker in workers:
        worker.timeline.read()
    with psycopg.connect(bench.stage.postgres.url(database)) as connection:
        left = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert left is not None
    assert left[0], "the queue ran empty, so the rate is meaningless"
    return sum(rate_between(worker.timeline.batches, start, end) for worker in workers)
