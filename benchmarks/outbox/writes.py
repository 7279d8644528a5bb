"""What PostgreSQL writes for an event over its whole life: recorded, processed, and vacuumed away from the outbox."""

import time
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from benchmarks.outbox.bench import Bench
from benchmarks.outbox.table import Line
from benchmarks.stage import START_SECONDS, run_beside

_CLIENTS = 4
_PAGE = 8192
_PGQUE_BYTES = 452
_AWA_BYTES = 2048
"""The figures that these two queues publish, measured with their own loads."""

_COUNTERS: LiteralString = """
    SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, wal_fpi, xact_commit
    FROM pg_stat_wal CROSS JOIN pg_stat_database WHERE datname = %s
"""
_CLIENTS_LEFT: LiteralString = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'
"""
_DEAD: LiteralString = "SELECT sum(n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"
_TABLES: LiteralString = (
    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
)


@dataclass(frozen=True, slots=True)
class Counters:
    """The server's write-ahead log (bytes, whole pages), and commits in one database, so far."""

    wal: int
    pages: int
    commits: int

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(self.wal - other.wal, self.pages - other.pages, self.commits - other.commits)


@dataclass(frozen=True, slots=True)
class Life:
    """What the events of one run cost, in each part of their life."""

    events: int
    recorded: Counters
    processed: Counters
    vacuumed: Counters
    dead: int
    """Rows that were updated or deleted, of all tables."""

    def lines(self, a_commit: int) -> list[Line]:
        parts = (self.recorded, self.processed, self.vacuumed)
        wal = [part.wal / self.events for part in parts]
        pages = sum(part.pages for part in parts) * _PAGE / self.events
        commits = [part.commits / self.events for part in parts[:2]]
        many = "one event a commit" if a_commit == 1 else f"{a_commit} events a commit"
        return [
            Line(
                f"write-ahead log of an event's whole life, recorded with {many}",
                sum(wal),
                "B",
                note=f"{wal[0]:,.0f} to record, {wal[1]:,.0f} to process, {wal[2]:,.0f} to vacuum; "
                f"at most {pages:,.0f} of them whole pages",
            ),
            Line(
                "… its commits",
                sum(commits),
                "an event",
                note=f"{commits[0]:.3g} to record, {commits[1]:.3g} to process",
            ),
            Line("… its dead rows, of all tables", self.dead / self.events, "an event"),
        ]


def measure(bench: Bench) -> list[Line]:
    """Every event is recorded, processed by the trivial handler and vacuumed, in a database of its own."""
    lines: list[Line] = []
    for a_commit in (1, 100):
        with bench.database("empty", "writes") as database:
            lines += _live(bench, database, a_commit).lines(a_commit)
    return [
        *lines,
        Line("PgQue, as published: write-ahead log of an event", _PGQUE_BYTES, "B"),
        Line("awa, as published: write-ahead log of a job, about", _AWA_BYTES, "B"),
    ]


def _live(bench: Bench, database: str, a_commit: int) -> Life:
    url, events = bench.stage.postgres.url(database), bench.sizes.written
    job = {"events": events, "a_commit": a_commit, "aggregates": bench.sizes.aggregates, "clients": _CLIENTS}
    with psycopg.connect(url, autocommit=True) as connection:
        # Vacuumed once, at the end: how often it happens meanwhile depends on how long that takes.
        for (table,) in connection.execute(_TABLES).fetchall():
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
    # Not in the database whose commits are counted.
    with psycopg.connect(bench.stage.postgres.url(), autocommit=True) as observer:
        observer.execute("CHECKPOINT")
        begun = _counters(observer, database)
        run_beside("benchmarks.outbox.recorder", job, settings=bench.stage.settings(database))
        recorded = _counters(observer, database)
        with bench.worker(database) as worker:
            worker.wait_for(events)
        processed = _counters(observer, database)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM outbox, events")
        vacuumed = _counters(observer, database)
    with psycopg.connect(url) as connection:
        ((dead,),) = connection.execute(_DEAD).fetchall()
    bench.check(database, [worker], events)
    return Life(events, recorded - begun, processed - recorded, vacuumed - processed, dead)


def _counters(observer: psycopg.Connection[tuple[Any, ...]], database: str) -> Counters:
    """The counters, once every client has left the database: a server process reports the rest when it ends."""
    deadline = time.monotonic() + START_SECONDS
    while observer.execute(_CLIENTS_LEFT, [database]).fetchall() != [(0,)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a client of {database} does not disconnect")
        time.sleep(0.05)
    (counters,) = observer.execute(_COUNTERS, [database]).fetchall()
    return Counters(*counters)
