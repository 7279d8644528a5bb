"""Ten million waiting events compared with ten thousand, alternately, and a worker's memory over all of them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from redis import Redis

from benchmarks.outbox.bench import Bench, Worker, middle
from benchmarks.outbox.events import Events, Log, fill, tidy, write_log
from benchmarks.outbox.table import Line, at_least, at_most
from benchmarks.outbox.timeline import Batch, rate
from benchmarks.usage import rss_mib
from services.keys import Keys

_LARGEST_MIB = 150.0
_FLAT_MIB = 10.0
_ROUNDS = 20
_MEMORY_SECONDS = 0.5


def measure(bench: Bench) -> list[Line]:
    sizes = bench.sizes
    memory = _Memory()
    with _small_backlog(bench) as small, bench.database(name="large") as name:
        fill(bench.stage.postgres.url(name), Events(sizes.backlog, sizes.aggregates))
        with bench.worker(name, number=2) as worker:
            pairs = [_in_turn(bench, small, worker, memory, n) for n in range(_ROUNDS)]
            with worker.awake():
                cost = bench.follow(worker, sizes.backlog, lambda: memory.look(worker)).cost
                memory.look(worker, at_once=True)
        bench.check(name, [worker], sizes.backlog)
    start, middle_one, end = (memory.after(sizes.backlog * share) for share in (0.05, 0.5, 1.0))
    return [
        Line(
            f"{sizes.small_backlog:,} waiting, drained {_ROUNDS} times",
            middle([small_rate for small_rate, _ in pairs]),
            "events/s",
        ),
        Line(
            f"{sizes.backlog:,} waiting: the first {sizes.backlog_measured:,} of them, in turn with those",
            middle([large_rate for _, large_rate in pairs]),
            "events/s",
            cost=cost,
        ),
        Line(
            f"{sizes.backlog:,} waiting to {sizes.small_backlog:,} waiting",
            middle([large_rate / small_rate for small_rate, large_rate in pairs]),
            "x",
            at_least(0.9),
        ),
        Line(
            f"memory of a worker over {sizes.backlog:,} events: peak",
            cost.peak_rss_mib,
            "MiB",
            at_most(_LARGEST_MIB),
            note=f"{start:.1f} MiB after a twentieth, {middle_one:.1f} half-way, {end:.1f} at the end",
        ),
        Line("… growth from a twentieth of the way to the end", end - start, "MiB", at_most(_FLAT_MIB)),
    ]


class _Memory:
    """A worker's resident memory by number of processed events, sampled at most every half second."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float]] = []
        self._looked_at = 0.0

    def look(self, worker: Worker, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._looked_at >= _MEMORY_SECONDS:
            self._looked_at = time.monotonic()
            self._seen.append((worker.timeline.processed, rss_mib(worker.pid)))

    def after(self, processed: float) -> float:
        """MiB once this many events were processed."""
        return next(mib for number, mib in self._seen if number >= processed)


@dataclass(frozen=True, slots=True)
class _Small:
    """A warmed-up worker that drains the small backlog repeatedly."""

    bench: Bench
    worker: Worker
    redis: Redis
    connection: psycopg.Connection[tuple[object, ...]]
    log: Log

    def drain(self, n: int) -> float:
        """The rate of the `n`-th drain."""
        number = self.bench.sizes.small_backlog
        # Held while the rows are inserted and vacuumed, as with the large backlog.
        with self.worker.held():
            self.log.release(self.connection, n * number, number)
            tidy(self.connection)
        # One ring per worker, since the other worker might take it.
        self.redis.lpush(Keys.of(self.bench.stage.settings("")).doorbell, b"1", b"1")
        return rate(_heart(self.bench.follow(self.worker, (n + 1) * number).batches))


@contextmanager
def _small_backlog(bench: Bench) -> Iterator[_Small]:
    number = bench.sizes.small_backlog
    with bench.database(name="small") as name:
        url = bench.stage.postgres.url(name)
        with psycopg.connect(url, autocommit=True) as connection, Redis.from_url(bench.stage.redis.url()) as redis:
            log = write_log(connection, Events(number * _ROUNDS, bench.sizes.aggregates))
            with bench.worker(name) as worker:
                yield _Small(bench, worker, redis, connection, log)
        bench.check(name, [worker], number * _ROUNDS)


def _in_turn(bench: Bench, small: _Small, worker: Worker, memory: _Memory, n: int) -> tuple[float, float]:
    """Rates of the small backlog and of the next part of the large one, after which the latter's worker is held."""
    first = len(worker.timeline.batches)
    with worker.awake():
        worker.wait_for((n + 1) * bench.sizes.backlog_measured // _ROUNDS, lambda: memory.look(worker))
    return small.drain(n), rate(_heart(worker.timeline.batches[first:]))


def _heart(batches: Sequence[Batch]) -> Sequence[Batch]:
    """All but the first and the last fifth: in between, every loop is busy."""
    edge = len(batches) // 5
    return batches[edge : len(batches) - edge]
