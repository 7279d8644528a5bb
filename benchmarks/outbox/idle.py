"""The cost of an idle worker."""

import re
import time
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.outbox.bench import Bench
from benchmarks.outbox.table import Line, at_most
from benchmarks.stage import running_worker
from benchmarks.usage import Meter

_STATEMENT = re.compile(r"waybill-worker\S* LOG:  (?:statement|execute [^:]+): ?(.*)")
_FRAMES = ("BEGIN", "COMMIT", "ROLLBACK")


def measure(bench: Bench) -> list[Line]:
    """A whole worker process on an empty outbox: its polls, its heartbeat, its jobs.

    The first minute has the jobs that run at the start, and a log consumer whose pauses still grow.
    """
    stage = bench.stage
    log = stage.folder / "postgres" / "server.log"
    with bench.database("empty", "idle") as database:
        with psycopg.connect(stage.postgres.url(), autocommit=True) as connection:
            statement = sql.SQL("ALTER DATABASE {} SET log_statement = 'all'")
            connection.execute(statement.format(sql.Identifier(database)))
        with running_worker(stage, stage.settings(database)) as pid:
            first, _ = _watch(bench, pid, log)
            steady, meter = _watch(bench, pid, log)
    postgres = meter.postgres_cpu / meter.seconds * 100
    if not steady:
        raise RuntimeError(f"no statements of the worker were logged:\n{stage.log('worker')}")
    return [
        Line(
            "a worker with nothing to do",
            steady,
            "statements/s",
            at_most(2),
            note=f"{first:.2f} statements/s before, right after the start",
        ),
        Line(
            "… its CPU time",
            meter.cpu / meter.seconds * 100,
            "% of a core",
            at_most(1),
            note=f"PostgreSQL for it: {postgres:.1f} % of a core, logging each statement",
        ),
    ]


def _watch(bench: Bench, pid: int, log: Path) -> tuple[float, Meter]:
    """The worker's statements a second, and what it costs meanwhile."""
    begin = log.stat().st_size
    meter = Meter(pid, bench.stage.postgres_pid)
    meter.start()
    time.sleep(bench.sizes.idle_seconds)
    meter.stop()
    said = log.read_bytes()[begin:].decode(errors="replace")
    return sum(not text.startswith(_FRAMES) for text in _STATEMENT.findall(said)) / meter.seconds, meter
