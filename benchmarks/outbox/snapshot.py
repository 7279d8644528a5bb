"""Full load while another session holds an old snapshot, and after it has let go."""

import time
from dataclasses import dataclass

import psycopg

from benchmarks.outbox.bench import Bench, Worker
from benchmarks.outbox.events import Events, Log, tidy, write_log
from benchmarks.outbox.sizes import Sizes
from benchmarks.outbox.table import Line, at_least, at_most
from benchmarks.outbox.timeline import rate_between

_POOL = 500_000
_WAITING = 100_000
_CHUNK = 5_000
_WARMUP_SECONDS = 2.0
_RECOVERED = 0.9
_WINDOW_SECONDS = 3.0
_STEP_SECONDS = 0.25


def measure(bench: Bench) -> list[Line]:
    """The rate without, with and after the snapshot, with the same producer all the while."""
    sizes = bench.sizes
    with bench.database() as name:
        url = bench.stage.postgres.url(name)
        with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url) as holder:
            log = write_log(connection, Events(_POOL, sizes.aggregates))
            load = _Load(connection, log)
            load.release(_WAITING)
            tidy(connection)
            with bench.worker(name) as worker:
                load.keep_up(worker, _WARMUP_SECONDS)
                start = time.monotonic()
                load.keep_up(worker, sizes.load_seconds)
                taken = time.monotonic()
                holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                holder.execute("SELECT count(*) FROM dead_letters")
                load.keep_up(worker, sizes.snapshot_seconds)
                given_up = time.monotonic()
                holder.rollback()
                back = _recover(load, worker, _RECOVERED * rate_between(worker.timeline.batches, start, taken), sizes)
                worker.wait_for(load.released)
            bench.check(name, [worker], load.released)
    batches = worker.timeline.batches
    without = rate_between(batches, start, taken)
    held = rate_between(batches, taken, given_up)
    last = rate_between(batches, given_up - sizes.snapshot_seconds / 10, given_up)
    return [
        Line(
            f"full load for {sizes.load_seconds:g} s, a set-based producer beside it",
            without,
            "events/s",
            note=f"at least {load.fewest:,} events waited all the while",
        ),
        Line(
            f"… while another session holds a snapshot for {sizes.snapshot_seconds:g} s, to without",
            held / without,
            "x",
            at_least(0.9),
        ),
        Line("… in the last tenth of that time, to without", last / without, "x", at_least(0.9)),
        Line(
            "… back at 0.9 of the rate without, after the snapshot is given up",
            back,
            "s",
            at_most(30),
            note="" if back is not None else f"not within {sizes.recovery_seconds:g} s",
        ),
    ]


@dataclass(slots=True)
class _Load:
    """Keeps the queue filled by small set-based commits of events that are in the log already, over and over."""

    connection: psycopg.Connection[tuple[object, ...]]
    log: Log
    released: int = 0
    fewest: int = _WAITING
    """The fewest events that waited at any time."""

    def release(self, number: int) -> None:
        for _ in range(0, number, _CHUNK):
            self.log.release(self.connection, self.released % self.log.number, _CHUNK)
            self.released += _CHUNK

    def keep_up(self, worker: Worker, seconds: float) -> None:
        """Top up what waits for so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            worker.timeline.read()
            waiting = self.released - worker.timeline.processed
            self.fewest = min(self.fewest, waiting)
            if waiting < _WAITING:
                self.release(_CHUNK)
            else:
                time.sleep(0.005)


def _recover(load: _Load, worker: Worker, wanted: float, sizes: Sizes) -> float | None:
    """Seconds until the first seconds in which the rate is back; None where it takes too long."""
    start = time.monotonic()
    load.keep_up(worker, _WINDOW_SECONDS)
    while (now := time.monotonic()) - start < sizes.recovery_seconds:
        if rate_between(worker.timeline.batches, now - _WINDOW_SECONDS, now) >= wanted:
            return now - _WINDOW_SECONDS - start
        load.keep_up(worker, _STEP_SECONDS)
    return None
