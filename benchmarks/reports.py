"""How fast the consumer of reports counts a log, and a plain loop the same events: `python -m benchmarks.reports`."""

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
import uvloop
from alembic import command
from rich.console import Console
from rich.table import Table

from benchmarks import plain_reports
from benchmarks.report import Target, machine
from benchmarks.shop import open_shop, place_waiting
from benchmarks.stage import Stage, open_stage
from benchmarks.usage import Meter
from migrations.config import ANALYTICS, alembic_config
from services.analytics import open_analytics
from services.database import Limits, open_database
from services.fields import new_id
from services.orders.days.service import COUNTED
from services.outbox.consumers import claim
from services.outbox.sink import run
from services.reports import service
from services.unit_of_work import UnitOfWork

_RATE = 20_000
_RATIO = 0.6
_DATABASE = "shop"

# A worker confirms each order; every tenth has its first line refunded.
_FOLLOW = """
    INSERT INTO events (id, type, version, aggregate, payload)
    SELECT uuidv7(), 'order.confirmed', 1, 'order/' || id,
        jsonb_build_object('order_id', id, 'total', total::text) FROM orders ORDER BY id;
    INSERT INTO events (id, type, version, aggregate, payload)
    SELECT uuidv7(), 'order.refunded', 1, 'order/' || order_id, jsonb_build_object('order_id', order_id,
        'refund_id', gen_random_uuid(), 'amount', (quantity * unit_price)::text,
        'pieces', jsonb_build_object('1', quantity))
    FROM order_items WHERE line = 1 AND hashtext(order_id::text) % 10 = 0 ORDER BY order_id;
"""

# What the reports must say, in one statement over the whole primary.
_TRUTH = """
    SELECT sum(quantity * unit_price) AS revenue, sum(quantity) AS pieces, count(DISTINCT order_id) AS orders
    FROM order_items
"""
_FOUND = "SELECT amount, pieces, orders FROM report_days WHERE seller_id = 0 AND type = 'order.confirmed'"


@dataclass(frozen=True, slots=True)
class Counted:
    """One run over the whole log."""

    name: str
    events: int
    seconds: float
    cpu_us: float
    """CPU time of this process for an event, in microseconds."""
    postgres_cpu_us: float
    """The same of PostgreSQL, for both databases."""
    others_cpu: float
    """CPUs that other processes on the machine kept busy meanwhile."""

    @property
    def rate(self) -> float:
        return self.events / self.seconds

    @property
    def rate_of_a_cpu(self) -> float:
        """Events for each second of CPU time: what a CPU reaches that no one else uses."""
        return 1e6 / (self.cpu_us + self.postgres_cpu_us)


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate(_DATABASE)
        url = stage.postgres.url(_DATABASE)
        place_waiting(url, open_shop(url, 200), options.orders, options.items)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_FOLLOW)
            connection.execute("VACUUM ANALYZE events, orders, order_items, order_transitions")
            connection.execute("CHECKPOINT")
        runs = []
        for number in range(options.rounds):
            # In turn, so that other work on the machine affects both.
            runs.append(_measure(stage, f"plain_{number}", options.batch_size, plain=True))
            runs.append(_measure(stage, f"reports_{number}", options.batch_size, plain=False))
    plain = max(runs[0::2], key=lambda one: one.rate)
    best = max(runs[1::2], key=lambda one: one.rate)
    targets = [
        Target(f"at least {_RATE:,} events/s", best.rate >= _RATE),
        Target(f"at least {_RATIO:g} of the plain loop's rate", best.rate / plain.rate >= _RATIO),
    ]
    _report(options, runs, plain, targets)
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reports", description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000, help="orders; 2.1 events each (default: 100000)")
    parser.add_argument("--items", type=int, default=3, help="lines of each order (default: 3)")
    parser.add_argument("--batch-size", type=int, default=5000, help="events in a transaction (default: 5000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the fastest counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _measure(stage: Stage, name: str, batch: int, *, plain: bool) -> Counted:
    stage.postgres.create_database(name)
    analytics = stage.postgres.url(name)
    command.upgrade(alembic_config(analytics, section=ANALYTICS), "head")
    primary = stage.postgres.url(_DATABASE)
    with psycopg.connect(primary) as connection:
        events, last = connection.execute("SELECT count(*), max(position) FROM events").fetchone() or (0, 0)
        connection.execute("DELETE FROM log_consumers")
    types = [event.type for event in COUNTED.values()]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        meter = Meter(os.getpid(), stage.postgres_pid)
        meter.start()
        if plain:
            runner.run(plain_reports.count(primary, analytics, types, batch, last))
        else:
            runner.run(_count(stage, analytics, batch))
        meter.stop()
    with psycopg.connect(primary) as connection, psycopg.connect(analytics) as other:
        truth, found = connection.execute(_TRUTH).fetchone(), other.execute(_FOUND).fetchone()
        if truth != found:
            sys.exit(f"{name}: the reports say {found}, and the orders {truth}")
    return Counted(
        "plain loop" if plain else "reports",
        events,
        meter.seconds,
        meter.cpu / events * 1e6,
        meter.postgres_cpu / events * 1e6,
        (meter.machine_cpu - meter.cpu - meter.postgres_cpu) / meter.seconds,
    )


async def _count(stage: Stage, analytics_url: str, batch: int) -> None:
    settings = stage.settings(_DATABASE, analytics_url=analytics_url)
    async with (
        open_database(settings, "benchmark") as database,
        open_analytics(settings, "benchmark", Limits.of_sinks(), 2) as analytics,
    ):
        assert analytics is not None
        consumer = service.consumer(analytics.open)
        async with UnitOfWork(database.write) as uow:
            lease = await claim(uow, consumer, new_id(), 60)
            await uow.commit()
        assert lease is not None
        while (await run(lambda: UnitOfWork(database.write), consumer, lease, batch)).more:
            pass


def _report(options: argparse.Namespace, runs: list[Counted], plain: Counted, targets: list[Target]) -> None:
    if options.json:
        document: dict[str, Any] = {
            "machine": machine(),
            "runs": [{**asdict(one), "per_second": one.rate, "ratio": one.rate / plain.rate} for one in runs],
            "targets": [asdict(target) for target in targets],
        }
        print(json.dumps(document, indent=2))
        return
    table = Table(
        "", "events", "seconds", "events/s", "ratio", "CPU µs", "PostgreSQL CPU µs", "events/CPU s", "others' CPUs"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in runs:
        table.add_row(
            one.name,
            f"{one.events:,}",
            f"{one.seconds:.2f}",
            f"{one.rate:,.0f}",
            f"{one.rate / plain.rate:.2f}",
            f"{one.cpu_us:.1f}",
            f"{one.postgres_cpu_us:.1f}",
            f"{one.rate_of_a_cpu:,.0f}",
            f"{one.others_cpu:.1f}",
        )
    console = Console(width=120, highlight=False)
    console.print(
        f"{options.orders:,} orders of {options.items} lines, {options.batch_size:,} events a batch", style="bold"
    )
    console.print(table)
    for target in targets:
        console.print(f"{'reached' if target.reached else 'MISSED'}: {target.text}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
