"""Full load while another session holds an old snapshot, alternately with the same load without one."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psycopg

from benchmarks.outbox.bench import Bench, Worker
from benchmarks.outbox.events import Events, Log, tidy, write_log
from benchmarks.outbox.table import Line, at_least, at_most
from benchmarks.outbox.timeline import processed_between, rate_between

_POOL = 250_000
_WAITING = 100_000
_CHUNK = 5_000
_TURN_SECONDS = 15.0
_TURN_WITHOUT_SECONDS = 5.0
_WARMUP_SECONDS = 2.0
_SETTLING_SECONDS = 0.5
_RECOVERED = 0.9
_WINDOW_SECONDS = 3.0
_STEP_SECONDS = 0.25


def measure(bench: Bench) -> list[Line]:
    """The rates with and without the snapshot, measured alternately; then how soon the former recovers."""
    sizes = bench.sizes
    with ExitStack() as stack:
        # Which rows vacuum must keep is decided per database: a snapshot held in one does not affect the other.
        held, free = (stack.enter_context(_load(bench, name, n)) for n, name in enumerate(("held", "free"), start=1))
        holder = stack.enter_context(psycopg.connect(bench.stage.postgres.url("held")))
        _in_turn(held, free, sizes.load_seconds, _TURN_WITHOUT_SECONDS)
        alike = held.rate() / free.rate()
        taken = time.monotonic()
        # With a transaction id, like a transaction that has written: neither that nor its snapshot may cost anything.
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT pg_current_xact_id()")
        _in_turn(held, free, sizes.snapshot_seconds * 0.9, _TURN_SECONDS)
        ending = time.monotonic()
        _in_turn(held, free, sizes.snapshot_seconds * 0.1, _TURN_WITHOUT_SECONDS)
        holder.rollback()
        back = _recover(held, _RECOVERED * free.rate(ending), sizes.recovery_seconds)
    return [
        Line(
            f"full load for {sizes.snapshot_seconds:g} s, a set-based producer beside it, in turn with that below",
            free.rate(taken),
            "events/s",
            note=f"at least {min(held.fewest, free.fewest):,} events waited all the while",
        ),
        Line("… in the other database, before a snapshot is held there, to this one", alike, "x"),
        Line(
            f"… while another session holds a snapshot for {sizes.snapshot_seconds:g} s, to without",
            held.rate(taken) / free.rate(taken),
            "x",
            at_least(0.9),
        ),
        Line(
            "… in the last tenth of that time, to without",
            held.rate(ending) / free.rate(ending),
            "x",
            at_least(0.9),
        ),
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
    """Keeps a queue filled with small set-based commits of events that are already in the log, over and over."""

    connection: psycopg.Connection[tuple[object, ...]]
    log: Log
    worker: Worker
    released: int = 0
    fewest: int = _WAITING
    """The fewest events that waited at any time."""
    turns: list[tuple[float, float]] = field(default_factory=list)
    """The periods of full load (monotonic seconds)."""

    def release(self, number: int) -> None:
        for _ in range(0, number, _CHUNK):
            self.log.release(self.connection, self.released % self.log.number, _CHUNK)
            self.released += _CHUNK

    def keep_up(self, seconds: float) -> None:
        """Keep the queue filled for this many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.worker.timeline.read()
            waiting = self.released - self.worker.timeline.processed
            self.fewest = min(self.fewest, waiting)
            if waiting < _WAITING:
                self.release(_CHUNK)
            else:
                time.sleep(0.005)

    def take_turn(self, seconds: float) -> None:
        with self.worker.awake():
            self.keep_up(_SETTLING_SECONDS)
            start = time.monotonic()
            self.keep_up(seconds)
            self.turns.append((start, time.monotonic()))

    def rate(self, after: float = 0.0) -> float:
        """Events per second in the turns that began at this time or later."""
        turns = [turn for turn in self.turns if turn[0] >= after]
        events = sum(processed_between(self.worker.timeline.batches, start, end) for start, end in turns)
        return events / sum(end - start for start, end in turns)


@contextmanager
def _load(bench: Bench, database: str, number: int) -> Iterator[_Load]:
    """A database with its own worker, warmed up and suspended; on exit it processes the rest, and none may be lost."""
    with bench.database(name=database) as name:
        with psycopg.connect(bench.stage.postgres.url(name), autocommit=True) as connection:
            log = write_log(connection, Events(_POOL, bench.sizes.aggregates))
            with bench.worker(name, number=number) as worker:
                load = _Load(connection, log, worker)
                load.release(_WAITING)
                tidy(connection)
                with worker.awake():
                    load.keep_up(_WARMUP_SECONDS)
                yield load
                with worker.awake():
                    worker.wait_for(load.released)
        bench.check(name, [worker], load.released)


def _in_turn(held: _Load, free: _Load, seconds: float, turn: float) -> None:
    """Full load of `held` for this many seconds, in turns of at most `turn` seconds, each followed by one of `free`.

    The machine's own speed changes by a third within minutes: a rate can only be compared with one of the same minute.
    """
    number = max(1, round(seconds / turn))
    for _ in range(number):
        held.take_turn(seconds / number)
        free.take_turn(min(_TURN_WITHOUT_SECONDS, seconds / number))


def _recover(load: _Load, wanted: float, patience: float) -> float | None:
    """Seconds until the rate has recovered; None if it takes too long."""
    start = time.monotonic()
    batches = load.worker.timeline.batches
    with load.worker.awake():
        load.keep_up(_WINDOW_SECONDS)
        while (now := time.monotonic()) - start < patience:
            if rate_between(batches, now - _WINDOW_SECONDS, now) >= wanted:
                return now - _WINDOW_SECONDS - start
            load.keep_up(_STEP_SECONDS)
    return None
