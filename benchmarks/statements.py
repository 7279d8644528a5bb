"""What each statement of placing an order costs PostgreSQL: `python -m benchmarks.statements`.

Planning and execution of each statement as `pg_stat_statements` counts them, and triggers' statements by themselves.
What the server's processes use beyond that is parsing, the protocol, commits, and background processes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.intake.bench import path_settings
from benchmarks.over_http import measured, order_requests, send, some_orders
from benchmarks.report import Measured
from benchmarks.shop import EARLIER_ORDERS, open_shop, place_waiting
from benchmarks.stage import open_stage
from services.settings import Settings

_BUYERS = 200
_LENGTH = 90
_PRELOADED = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "all",
    "pg_stat_statements.track_planning": "on",
}

# Of the copy of the database, so without what was filled in before.
_STATEMENTS = """
    SELECT toplevel, regexp_replace(query, '\\s+', ' ', 'g'), calls, plans, total_plan_time, total_exec_time,
        wal_bytes::bigint
    FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND query NOT LIKE '%pg_stat_statements%'
    ORDER BY total_plan_time + total_exec_time DESC LIMIT 25
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """One statement, for each order: times in microseconds. One in a trigger is also in its statement's time."""

    text: str
    in_trigger: bool
    calls: float
    plans: float
    planning: float
    execution: float
    wal_bytes: float


def main() -> int:
    options = _options()
    spent: list[Spent] = []
    with open_stage(**_PRELOADED) as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        shop = open_shop(url, _BUYERS)
        place_waiting(url, shop, EARLIER_ORDERS, options.items)
        orders = some_orders(shop, options.items)
        job = {"clients": options.clients, "seconds": options.seconds, "warmup": 0.0}

        @contextmanager
        def reading(settings: Settings) -> Iterator[None]:
            yield
            spent.extend(_read(settings.database_url))

        seen = send(
            stage,
            "shop",
            job,
            lambda settings: order_requests(settings, orders),
            beside=reading,
            settings=path_settings(group=not options.single),
        )
    _report(measured("Waybill over HTTP", seen), spent, as_json=options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statements", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds (default: 10)")
    parser.add_argument("--clients", type=int, default=16, help="concurrent requests (default: 16)")
    parser.add_argument("--items", type=int, default=3, help="lines per order (default: 3)")
    parser.add_argument("--single", action="store_true", help="without group commit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _read(url: str) -> list[Spent]:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
        assert row is not None
        orders = row[0] - EARLIER_ORDERS
        rows = connection.execute(_STATEMENTS).fetchall()
    return [
        Spent(
            text,
            not toplevel,
            calls / orders,
            plans / orders,
            planning * 1000 / orders,
            execution * 1000 / orders,
            wal_bytes / orders,
        )
        for toplevel, text, calls, plans, planning, execution, wal_bytes in rows
    ]


def _report(run: Measured, spent: list[Spent], *, as_json: bool) -> None:
    planning, execution = (
        sum(getattr(one, name) for one in spent if not one.in_trigger) for name in ("planning", "execution")
    )
    rest = run.postgres_cpu_ms * 1000 - planning - execution
    notes = [
        f"{run.rate:,.0f} orders/s; PostgreSQL used {run.postgres_cpu_ms * 1000:,.0f} µs of CPU for an order, with the "
        f"clock running {planning:,.0f} µs in planning and {execution:,.0f} µs in execution, which leaves {rest:,.0f} "
        "µs. With other processes on the machine, the clock runs longer than the CPU works.",
        f"The API used {run.cpu_ms * 1000:,.0f} µs of CPU for an order.",
    ]
    if as_json:
        document: dict[str, Any] = {"run": asdict(run), "statements": [asdict(one) for one in spent], "notes": notes}
        print(json.dumps(document, indent=2))
        return
    table = Table("for each order", "calls", "plans", "planning µs", "execution µs", "WAL bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in spent:
        table.add_row(
            ("  in a trigger: " if one.in_trigger else "") + one.text[:_LENGTH],
            f"{one.calls:.2f}",
            f"{one.plans:.2f}",
            f"{one.planning:,.0f}",
            f"{one.execution:,.0f}",
            f"{one.wal_bytes:,.0f}",
        )
    console = Console(width=180, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
