"""Shared by all scenarios: databases with waiting events, worker processes and their progress."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psycopg

from benchmarks.outbox.events import Events, fill
from benchmarks.outbox.sizes import Sizes
from benchmarks.outbox.table import Cost
from benchmarks.outbox.timeline import Batch, Timeline, rate
from benchmarks.stage import START_SECONDS, Stage, run_beside
from benchmarks.usage import Meter, peak_rss_mib

_LOOK_SECONDS = 0.01
_STALLED_SECONDS = 60.0


@dataclass(slots=True)
class Worker:
    """A worker process and what it has done so far."""

    pid: int
    timeline: Timeline
    log: Callable[[], str]

    def wait_for(self, processed: int, on_look: Callable[[], None] | None = None) -> None:
        """Return when it has processed this many events in total; end the benchmark if it stalls."""
        last = time.monotonic()
        while self.timeline.processed < processed:
            if self.timeline.read():
                last = time.monotonic()
            if time.monotonic() - last > _STALLED_SECONDS:
                sys.exit(f"a worker stalled at {self.timeline.processed:,} events:\n{self.log()}")
            if on_look is not None:
                on_look()
            time.sleep(_LOOK_SECONDS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Suspend it during the block, whatever it is doing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it work during the block, then suspend it until it is to work again, or to end."""
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class Drained:
    """The batches of a worker from its first one on, and their cost."""

    batches: Sequence[Batch]
    cost: Cost

    @property
    def rate(self) -> float:
        return rate(self.batches)


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers, the sizes, and the batch size if it is not the default."""

    stage: Stage
    sizes: Sizes
    batch_size: int | None
    _done: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of the first call of `measure`: a figure of this run that several scenarios compare with."""
        if name not in self._done:
            self._done[name] = measure()
        return self._done[name]

    @contextmanager
    def filled(self, events: Events) -> Iterator[str]:
        """A database with waiting events, to be cloned for each run."""
        with self.database(
            "empty", f"filled_{events.number}_{events.watched}_{events.block_at}_{events.types}"
        ) as name:
            fill(self.stage.postgres.url(name), events)
            yield name

    @contextmanager
    def database(self, source: str = "empty", name: str = "run") -> Iterator[str]:
        """A copy of a database, dropped on exit."""
        self.stage.clone(source, name)
        try:
            yield name
        finally:
            self.stage.drop(name)

    @contextmanager
    def worker(
        self,
        database: str,
        *,
        number: int = 1,
        wait: float = 0.0,
        failing: bool = False,
        types: int = 1,
        **settings: Any,
    ) -> Iterator[Worker]:
        """A worker process on the database; `number` distinguishes workers of the same database.

        It subscribes to the first `types` of the event types.
        """
        if self.batch_size is not None:
            settings.setdefault("outbox_batch_size", self.batch_size)
        name = f"worker-{number}"
        timeline = self.stage.folder / f"{name}.timeline"
        timeline.unlink(missing_ok=True)
        arguments = ["-m", "benchmarks.outbox.worker", str(timeline), "--wait", str(wait)]
        arguments += ["--aggregates", str(self.sizes.aggregates), "--types", str(types)]
        arguments += ["--failing"] if failing else []
        wanted = self.stage.settings(database, **settings)
        with self.stage.process(name, arguments, wanted) as process:
            try:
                yield Worker(process.pid, Timeline(timeline), lambda: self.stage.log(name))
            finally:
                # A suspended process would not receive the signal to end.
                process.send_signal(signal.SIGCONT)

    @contextmanager
    def workers(self, database: str, number: int, **more: Any) -> Iterator[list[Worker]]:
        """Several worker processes on one database."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.worker(database, number=n + 1, **more)) for n in range(number)]

    def drain(self, database: str, expected: int, **more: Any) -> Drained:
        """Have one worker process `expected` waiting events."""
        with self.worker(database, **more) as worker:
            drained = self.follow(worker, expected)
        self.check(database, [worker], expected)
        return drained

    def follow(self, worker: Worker, expected: int, on_look: Callable[[], None] | None = None) -> Drained:
        """Meter a worker from its next batch to the `expected`-th event in total."""
        first, before = len(worker.timeline.batches), worker.timeline.processed
        meter = Meter(worker.pid, self.stage.postgres_pid)
        _wait_for_start(worker, before)
        started_at = worker.timeline.processed
        meter.start()
        worker.wait_for(expected, on_look)
        meter.stop()
        cost = Cost.of(meter, max(1, worker.timeline.processed - started_at), peak_rss_mib(worker.pid))
        return Drained(worker.timeline.batches[first:], cost)

    def check(self, database: str, workers: Sequence[Worker], expected: int, waiting: int = 0) -> None:
        """End the benchmark if an event was lost, took effect twice or out of order: its figures would mean nothing."""
        for worker in workers:
            worker.timeline.read()
        processed = sum(worker.timeline.processed for worker in workers)
        disordered = sum(worker.timeline.disordered for worker in workers)
        with psycopg.connect(self.stage.postgres.url(database)) as connection:
            left = connection.execute("SELECT count(*) FROM outbox").fetchone()
            dead = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
        if (processed, disordered, left, dead) != (expected, 0, (waiting,), (0,)):
            sys.exit(
                f"expected {expected:,} processed events, found {processed:,}, {disordered:,} of them out of order; "
                f"{left} are waiting, {dead} are dead letters\n{workers[0].log()}"
            )

    def plain(self, database: str) -> tuple[float, Cost]:
        """The plain asyncpg loop on the database: events per second, and their cost."""
        job = {
            "database_url": self.stage.postgres.url(database),
            "postgres_pid": self.stage.postgres_pid,
            "batch_size": 100,
        }
        seen = run_beside("benchmarks.outbox.plain_loop", job)
        meter = Meter(0, 0, seen["seconds"], seen["cpu"], seen["postgres_cpu"], seen["machine_cpu"])
        return seen["replies"] / seen["seconds"], Cost.of(meter, seen["replies"], seen["peak_rss_mib"])


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))


def _wait_for_start(worker: Worker, processed: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while worker.timeline.processed == processed:
        worker.timeline.read()
        if time.monotonic() > deadline:
            sys.exit(f"a worker did not start:\n{worker.log()}")
        time.sleep(_LOOK_SECONDS)
