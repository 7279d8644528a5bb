"""From the commit of an order to the commit of its processing, at a steady rate of orders."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import psycopg

from benchmarks.outbox.bench import Bench
from benchmarks.outbox.table import Line, at_most
from benchmarks.report import percentile
from benchmarks.shop import Shop, open_shop, place_waiting
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_worker

_RATE = 200
_ITEMS = 3
_BUYERS = 200
_EARLIER_ORDERS = 200_000
_WARMUP_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_MILLISECOND = 0.001

# Both commits by PostgreSQL's clock: the time in each commit record (`track_commit_timestamp`). The two transitions of
# an order are written in these two transactions and never changed.
_LATENCIES = """
    SELECT extract(epoch FROM pg_xact_commit_timestamp(confirmed.xmin) - pg_xact_commit_timestamp(placed.xmin))::float
    FROM order_transitions AS placed JOIN order_transitions AS confirmed USING (order_id)
    WHERE placed.to_status = 'pending' AND confirmed.to_status = 'confirmed' AND placed.created_at >= (
        SELECT min(created_at) FROM orders WHERE created_at > %s
    ) + make_interval(secs => %s) ORDER BY 1
"""

# The times of each order, by PostgreSQL's clock: placed, then of the transaction that confirmed it: its begin, its
# write of the transition, and its commit; and the commit of the batch before it. Holds are posted with the time at
# which their transaction began.
_PARTS = """
    WITH found AS (
        SELECT pg_xact_commit_timestamp(placed.xmin) AS placed, confirmed.created_at AS written,
            pg_xact_commit_timestamp(confirmed.xmin) AS ended,
            (SELECT min(resolved_at) FROM transfers WHERE transfers.order_id = placed.order_id) AS begun
        FROM order_transitions AS placed JOIN order_transitions AS confirmed USING (order_id)
        WHERE placed.to_status = 'pending' AND confirmed.to_status = 'confirmed' AND placed.created_at >= (
            SELECT min(created_at) FROM orders WHERE created_at > %s
        ) + make_interval(secs => %s)
    ), batch AS (
        SELECT begun, max(ended) AS ended, count(*) AS orders, lag(max(ended)) OVER (ORDER BY begun) AS before
        FROM found GROUP BY begun
    ), spent AS (
        SELECT greatest(before - placed, interval '0') AS busy, begun - greatest(placed, before) AS waking,
            written - begun AS working, found.ended - written AS committing, orders
        FROM found JOIN batch USING (begun) WHERE before IS NOT NULL
    )
    SELECT avg(orders)::float,
        extract(epoch FROM avg(busy))::float, extract(epoch FROM avg(waking))::float,
        extract(epoch FROM avg(working))::float, extract(epoch FROM avg(committing))::float
    FROM spent
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the time from commit to commit goes: means, in seconds.

    `busy` is until the end of the batch that the worker was processing, `waking` from there, or from the commit, to the
    begin of the next one, `working` until the order's move is written, and `committing` the rest.
    """

    batch: float
    """The number of orders in the batch of an order."""
    busy: float
    waking: float
    working: float
    committing: float

    def __str__(self) -> str:
        names = ("busy", "waking", "working", "committing")
        shown = ", ".join(f"{name} {getattr(self, name) / _MILLISECOND:.1f}" for name in names)
        return f"{shown} ms; {self.batch:.1f} orders a batch"


def parts_since(connection: psycopg.Connection[tuple[object, ...]], begin: datetime, warmup: float) -> Parts:
    """Where the time goes, of the orders that `latencies_since` is about. It assumes that batches do not overlap."""
    row = connection.execute(_PARTS, [begin, warmup]).fetchone()
    assert row is not None
    return Parts(*cast(tuple[float, ...], row))


def measure(bench: Bench) -> list[Line]:
    """Uses its own servers, since commits are timestamped only here, and Redis is stopped."""
    with open_stage(track_commit_timestamp="on") as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        shop = open_shop(url, _BUYERS)
        # A shop with a history, so that the planner never has to guess from an empty table.
        place_waiting(url, shop, _EARLIER_ORDERS, _ITEMS)
        interval = stage.settings("shop").outbox_poll_interval
        woken, woken_late = _run(bench, stage, shop, redis_down=False)
        polled, polled_late = _run(bench, stage, shop, redis_down=True)
    return [
        Line(
            f"commit to processed, {_RATE} orders/s offered: p50",
            percentile(woken, 0.5) / _MILLISECOND,
            "ms",
            at_most(5),
            note=f"{len(woken):,} orders; placing one took {woken_late:.1f} ms at p99, from when it was due",
        ),
        Line("… p99", percentile(woken, 0.99) / _MILLISECOND, "ms", at_most(25)),
        Line("… with Redis down: p50", percentile(polled, 0.5) / _MILLISECOND, "ms"),
        Line(
            "… with Redis down: p99",
            percentile(polled, 0.99) / _MILLISECOND,
            "ms",
            at_most(interval / _MILLISECOND + 50),
            note=f"a poll interval of {interval:g} s; placing one took {polled_late:.1f} ms at p99",
        ),
    ]


def _run(bench: Bench, stage: Stage, shop: Shop, *, redis_down: bool) -> tuple[list[float], float]:
    """The latencies in seconds, sorted, and the milliseconds within which 99 % of the orders were placed."""
    name = "polled" if redis_down else "woken"
    stage.clone("shop", name)
    settings = stage.settings(name)
    job: dict[str, Any] = {
        "rate": _RATE,
        "seconds": bench.sizes.latency_seconds + _WARMUP_SECONDS,
        "warmup": _WARMUP_SECONDS,
        "seed": 1,
        "items": _ITEMS,
        "buyer_ids": shop.buyer_ids,
        "product_ids": shop.product_ids,
    }
    connect = psycopg.connect(stage.postgres.url(name), autocommit=True)
    with connect as connection, running_worker(stage, settings):
        if redis_down:
            stage.redis.stop()
        begin = connection.execute("SELECT now()").fetchone()
        assert begin is not None
        seen = run_beside("benchmarks.outbox.buyers", job, settings=settings)
        wait_until_processed(connection, stage)
        latencies = latencies_since(connection, begin[0], _WARMUP_SECONDS)
    check_books(stage, name)
    return latencies, percentile(sorted(seen["latencies"]), 0.99) / _MILLISECOND


def latencies_since(connection: psycopg.Connection[tuple[object, ...]], begin: datetime, warmup: float) -> list[float]:
    """Seconds from commit to commit, sorted, of the orders placed after `begin`, without those of the warm-up."""
    return [cast(float, row[0]) for row in connection.execute(_LATENCIES, [begin, warmup]).fetchall()]


def wait_until_processed(connection: psycopg.Connection[tuple[object, ...]], stage: Stage) -> None:
    """Return when the outbox is empty. Raises `RuntimeError` if the worker takes too long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while connection.execute("SELECT FROM outbox LIMIT 1").fetchone() is not None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not process every order:\n{stage.log('worker')}")
        time.sleep(0.05)
