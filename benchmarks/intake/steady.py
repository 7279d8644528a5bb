"""A steady rate of orders beside a worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from statistics import median

import psycopg

from benchmarks.intake.bench import BUYERS, ITEMS, Bench, Found, path_settings
from benchmarks.outbox.latency import latencies_since, parts_since, wait_until_processed
from benchmarks.outbox.table import Line, at_most
from benchmarks.over_http import WARMUP_SECONDS, measured, middle, order_requests, send, some_orders
from benchmarks.report import Measured, percentile
from benchmarks.shop import open_shop, place_waiting
from benchmarks.stage import open_stage, running_worker
from services.settings import Settings

_OFFERED = 200
_OFFERING_CLIENTS = 64
_EARLIER_TIMES = 20
"""How many times the orders of a run there are before it: PostgreSQL analyses a table when a tenth has changed."""


def process_steadily(bench: Bench) -> Found:
    """From the commit of an order to the commit of its processing, with an API and a worker at a steady rate.

    It uses its own servers, since commits are timestamped only here.
    """
    with open_stage(track_commit_timestamp="on") as stage:
        stage.migrate("shop")
        shop = open_shop(stage.postgres.url("shop"), BUYERS)
        earlier = round(_EARLIER_TIMES * _OFFERED * (bench.seconds + WARMUP_SECONDS))
        place_waiting(stage.postgres.url("shop"), shop, earlier, ITEMS)
        own = Bench(stage, shop, bench.seconds, bench.rounds)
        latencies: dict[str, list[list[float]]] = {}
        runs = own.alternate(
            {
                "single": partial(_offer, own, "single path", latencies, group=False),
                "group": partial(_offer, own, "group path", latencies, group=True),
            }
        )

    def at(path: str, share: float) -> float:
        return median(percentile(found, share) for found in latencies[path]) * 1000

    number = sum(map(len, latencies["group path"]))
    line = Line(
        f"commit to processed, {_OFFERED} orders/s offered over HTTP: p50",
        at("group path", 0.5),
        "ms",
        at_most(5),
        note=f"{number:,} orders; on the single path {at('single path', 0.5):.1f} ms",
    )
    late = Line(
        "… p99",
        at("group path", 0.99),
        "ms",
        at_most(25),
        note=f"on the single path {at('single path', 0.99):.1f} ms. Mean parts: {own.shares['group path'][0]}",
    )
    return Found(
        f"{_OFFERED} orders/s offered beside a worker (the times are of requests, from when they were due)",
        [middle(runs["single"]), middle(runs["group"])],
        [line, late],
    )


def _offer(bench: Bench, name: str, latencies: dict[str, list[list[float]]], *, group: bool) -> Measured:
    begin = datetime.now(UTC)
    job = {"clients": _OFFERING_CLIENTS, "seconds": bench.seconds, "rate": _OFFERED}
    orders = some_orders(bench.shop, ITEMS)

    @contextmanager
    def worker(settings: Settings) -> Iterator[None]:
        with (
            running_worker(bench.stage, settings),
            psycopg.connect(settings.database_url, autocommit=True) as connection,
        ):
            yield
            wait_until_processed(connection, bench.stage)

    def note(url: str, _: int) -> None:
        with psycopg.connect(url) as connection:
            latencies.setdefault(name, []).append(latencies_since(connection, begin, WARMUP_SECONDS))
            bench.shares.setdefault(name, []).append(str(parts_since(connection, begin, WARMUP_SECONDS)))

    seen = send(
        bench.stage,
        "shop",
        job,
        lambda settings: order_requests(settings, orders),
        check=note,
        beside=worker,
        settings=path_settings(group=group),
    )
    return measured(name, seen)
