"""Every read on a database with very many rows: `python -m benchmarks.size`.

Lists are asked for with each sort that they document, in each direction, and with each filter, for values that have
most rows, few and none. The baseline is the same read on a small database. A test checks the plans of all combinations.
"""

import argparse
import asyncio
import http.client
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote, urlencode

import psycopg
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from benchmarks import many
from benchmarks.sessions import session_of
from benchmarks.stage import Stage, open_stage, running_api
from services.api.tokens import Tokens
from services.app import create_app
from services.cli.main import app as cli
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings, get_settings
from worker.context import open_worker
from worker.schedules import scheduled_jobs

_MOST_MS = 50.0
_HOPELESS_MS = 2000.0
_FEW = 2_000
"""The orders of the baseline."""
_ALIKE = {"gt", "lte"}
"""Operators that are left out: another one has the same plan."""
_SLOWEST = 12
_TIMES = 7
"""From the sixth time on, PostgreSQL may use a plan for any values."""
_TIMES_OF_BASELINE = 3

_UNLISTED = {"/healthz", "/readyz", "/metrics"}
_SIDES = (("buyer", "as=buyer"), ("seller", "as=seller"), ("operator", "as=everybody"))
_SCOPES: Mapping[str, Sequence[tuple[str, str]]] = {
    "/v1/orders": _SIDES,
    "/v1/orders.csv": _SIDES,
    "/v1/orders.ndjson": _SIDES,
    "/v1/accounts/me/statement": (("seller", ""),),
    "/v1/accounts/me/statement.csv": (("buyer", ""),),
    "/v1/accounts/me": (("seller", ""),),
}
"""Who asks, and for what, if it is not an operator."""
_MORE = {
    "/v1/products": ["q=lanten", "q=Brass", "q=submarine"],
    "/v1/operations/why": ["aggregate=thing/77", "aggregate=dead/7", "aggregate=reminder/7"],
    "/v1/operations/orders-by-day": ["days=366"],
}
"""Further parameters, instead of none."""

_COMMANDS = (
    "outbox status",
    "outbox types",
    "outbox why thing/77",
    "outbox why reminder/7",
    "outbox dead-letters list",
    "outbox dead-letters list --type rare",
    "outbox dead-letters show {letter}",
    "outbox dead-letters groups",
    "outbox deferred",
    "outbox deferred --type rare",
    "workers list",
    "outbox consumers list",
    "orders-by-day --days 366",
    "jobs list",
    "ledger audit",
)


@dataclass(frozen=True, slots=True)
class Read:
    """Milliseconds of one read: what the client waits, or what the database works for a command or a job."""

    name: str
    ms: float


def main() -> int:
    options = _options()
    size = many.Size.of(options.orders)
    with open_stage(shared_preload_libraries="pg_stat_statements") as stage:
        small = _measure(stage, "small", many.Size.of(_FEW), _TIMES_OF_BASELINE)
        large = _measure(stage, "large", size, _TIMES)
    report = [(one, small[one.name]) for one in sorted(large.values(), key=lambda one: -one.ms)]
    _report(size, report, as_json=options.json)
    return 1 if any(one.ms > _MOST_MS for one, _ in report if one.name.startswith("GET")) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument(
        "--orders", type=int, default=1_000_000, help="orders; other rows in proportion (default: 1000000)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _measure(stage: Stage, name: str, size: many.Size, times: int) -> dict[str, Read]:
    stage.migrate(name)
    url = stage.postgres.url(name)
    started = time.perf_counter()
    many.fill(url, size)
    print(f"{name}: filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    # One connection for each of the two units of work that a request may have: it is the same one each time.
    settings = stage.settings(
        name,
        database_pool_size=2,
        database_max_overflow=0,
        database_statement_timeout=30,
        database_transaction_timeout=60,
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        connection.execute("CHECKPOINT")
        found = [
            # First of all the audit, which a route reports.
            *asyncio.run(_jobs(settings, connection)),
            *_commands(settings, connection),
            *_requests(stage, settings, connection, times),
        ]
    stage.drop(name)
    return {one.name: one for one in found}


def _requests(stage: Stage, settings: Settings, database: psycopg.Connection[Any], times: int) -> Iterator[Read]:
    users = {"seller": many.BIG_SELLER, "buyer": many.BIG_BUYER, "operator": _one(database, _AN_OPERATOR)}
    tokens = Tokens.from_settings(settings)
    headers = {who: {"Authorization": f"Bearer {tokens.make(session_of(user_id))}"} for who, user_id in users.items()}
    ids = {name: str(_one(database, statement)) for name, statement in _IDS.items()}
    paths = create_app(settings).openapi()["paths"]
    with running_api(stage, settings) as (_, port):
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
        for path in (path for path, operations in paths.items() if "get" in operations and _is_measured(path)):
            given = {one["name"]: one.get("description", "") for one in paths[path]["get"].get("parameters", ())}
            for who, scope in _SCOPES.get(path, (("operator", ""),)):
                for query in _queries(path, given):
                    address = "&".join(filter(None, (scope, query)))
                    target = f"{path.format(**ids)}?{address}" if address else path.format(**ids)
                    yield Read(
                        f"GET {path} {unquote(address)}".strip(), _fastest(connection, target, headers[who], times)
                    )
        connection.close()


def _is_measured(path: str) -> bool:
    # Reports are read from a database of their own, which this benchmark does not have.
    return path not in _UNLISTED and not path.startswith("/v1/reports/")


def _queries(path: str, given: Mapping[str, str]) -> Iterator[str]:
    """Each sort and each filter, as the documentation names them."""
    if "filter" not in given:
        yield from _MORE.get(path, [""])
        return
    for name in re.findall(r"`(\w+)`", given.get("sort", "").split(";")[0]):
        yield from (f"sort={name}", f"sort=-{name}")
    for field, operators in re.findall(r"`(\w+)` \(([a-z_, ]+)\)", given["filter"]):
        for operator in set(operators.split(", ")) - _ALIKE:
            for value in many.values_of(path, field, operator):
                yield urlencode({"filter": f"{field}:{operator}:{value}"})
    yield from _MORE.get(path, ())


def _fastest(connection: http.client.HTTPConnection, target: str, headers: Mapping[str, str], times: int) -> float:
    """Milliseconds of a request: the fastest of those with plans for its values, or with plans for any, if slower.

    The first time does not count. Of an export, it is the time until its first piece.
    """
    taken: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        connection.request("GET", target, headers=dict(headers))
        reply = connection.getresponse()
        reply.read(1)
        taken.append((time.perf_counter() - started) * 1000)
        if reply.status != 200:
            sys.exit(f"GET {target}: {reply.status} {reply.read().decode()}")
        if ".csv" in target or ".ndjson" in target:
            connection.close()
        else:
            reply.read()
        if taken[-1] > _HOPELESS_MS:
            break
    return max(min(taken[1:5], default=taken[0]), min(taken[5:], default=0.0))


def _commands(settings: Settings, database: psycopg.Connection[Any]) -> Iterator[Read]:
    letter = _one(database, _IDS["position"])
    values = settings.model_dump(mode="json", exclude_unset=True)
    values["secret_key"] = settings.secret_key.get_secret_value()
    environment = {f"WAYBILL_{name.upper()}": str(value) for name, value in values.items()}
    os.environ.update(environment)
    get_settings.cache_clear()
    for command in _COMMANDS:
        with _worked(database) as worked:
            done = CliRunner().invoke(cli, command.format(letter=letter).split())
        if done.exit_code != 0:
            sys.exit(f"waybill {command}: {done.output} {done.exception!r}")
        yield Read(f"waybill {command}", worked[0])


async def _jobs(settings: Settings, database: psycopg.Connection[Any]) -> list[Read]:
    found = []
    async with open_worker(settings) as worker:
        for scheduled in scheduled_jobs(settings):
            with _worked(database) as worked:
                await scheduled.job({"worker": worker})
            found.append(Read(f"job {scheduled.name}", worked[0]))
    return found


@contextmanager
def _worked(database: psycopg.Connection[Any]) -> Iterator[list[float]]:
    """Milliseconds that the database spends on the statements of the block."""
    worked: list[float] = []
    database.execute("SELECT pg_stat_statements_reset()")
    yield worked
    worked.append(_one(database, _WORKED))


def _one(database: psycopg.Connection[Any], statement: Any) -> Any:
    row = database.execute(statement).fetchone()
    assert row is not None
    return row[0]


_WORKED = """
    SELECT coalesce(sum(total_exec_time + total_plan_time), 0) FROM pg_stat_statements
    WHERE query NOT LIKE '%pg_stat_statements%'
"""
_AN_OPERATOR = "SELECT min(id) FROM users WHERE role = 'operator' AND deleted_at IS NULL AND is_active"
_IDS = {
    "order_id": "SELECT id FROM orders ORDER BY id LIMIT 1",
    "transfer_id": "SELECT id FROM transfers LIMIT 1",
    "category_id": "SELECT min(id) FROM categories",
    "product_id": "SELECT min(id) FROM products",
    "user_id": "SELECT min(id) FROM users WHERE deleted_at IS NULL",
    "adjustment_id": "SELECT id FROM adjustments LIMIT 1",
    "position": "SELECT min(position) FROM dead_letters",
}


def _report(size: many.Size, found: Sequence[tuple[Read, Read]], *, as_json: bool) -> None:
    slow = [one for one, _ in found if one.ms > _MOST_MS]
    if as_json:
        rows = [{"name": one.name, "ms": one.ms, "small_ms": base.ms, "ratio": one.ms / base.ms} for one, base in found]
        print(json.dumps({"size": asdict(size), "reads": rows}, indent=2))
        return
    table = Table("", "few rows, ms", "many rows, ms", "ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    for one, base in found[: max(len(slow), _SLOWEST)]:
        table.add_row(one.name, f"{base.ms:.1f}", f"{one.ms:.1f}", f"{one.ms / max(base.ms, 0.01):.1f}")
    console = Console(width=170, highlight=False)
    title = f"{len(found):,} reads with {size.users:,} users, {size.products:,} products and {size.orders:,} orders"
    console.print(f"{title}: those above {_MOST_MS:g} ms, or the {_SLOWEST} slowest", style="bold")
    console.print(table)
    requests = [one for one, _ in found if one.name.startswith("GET")]
    late = sum(one.ms > _MOST_MS for one in requests)
    said = f"each of {len(requests):,} requests takes at most {_MOST_MS:g} ms"
    console.print(f"{'MISSED' if late else 'reached'}: {said}")


if __name__ == "__main__":
    sys.exit(main())
