"""What a group of orders costs the API and PostgreSQL, by its size: `python -m benchmarks.groups`.

Groups of a fixed size are carried out in this process, one after another, without HTTP. Whatever the size, a group has
a fixed cost; the sizes show how much it is. CPU times vary with what else the machine does; the number of function
calls does not.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle
from typing import Any
from uuid import uuid4

import uvloop
from fastapi import Request
from rich.console import Console
from rich.table import Table

from benchmarks.over_http import Order, some_orders
from benchmarks.report import percentile
from benchmarks.sessions import session_of
from benchmarks.shop import EARLIER_ORDERS, open_shop, place_waiting
from benchmarks.stage import Stage, check_books, open_stage
from benchmarks.usage import family_cpu_seconds
from services.api.groups import Groups
from services.api.intents import kind_of
from services.api.kept import request_key
from services.api.turns import Answered, Intent
from services.collector import spare_what_stays
from services.database import Limits, open_database
from services.orders.routes import place_order
from services.orders.schemas import OrderCreate
from services.outbox.events import Trace

_BUYERS = 200
_WARMUP = 30
_COUNTED = 20
"""Groups of each size whose function calls are counted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a group of this many orders costs: milliseconds of CPU, and calls of Python functions, built-in ones too.

    Whatever else the machine does only adds to CPU times: the API's is that of the group at the 20th percentile,
    PostgreSQL's the mean of the cheapest round.
    """

    size: int
    api_ms: float
    postgres_ms: float
    calls: float


class _Silent:
    def ring(self) -> None:
        pass


class _Customers:
    """Makes requests that place orders, and has them carried out as groups."""

    def __init__(self, groups: Groups, orders: Sequence[Order]) -> None:
        kind = kind_of(place_order)
        assert kind is not None
        self._groups, self._kind = groups, kind
        bodies = [(order["buyer_id"], order["body"].encode()) for order in orders]
        self._orders = cycle([(buyer, body, OrderCreate.model_validate_json(body)) for buyer, body in bodies])
        self._numbers = count()

    async def place(self, size: int, groups: int, profile: cProfile.Profile | None = None) -> list[float]:
        """Place so many groups of this size; returns the seconds of CPU that this process spent on each."""
        spent = []
        for _ in range(groups):
            intents = [self._intent() for _ in range(size)]
            begin = time.process_time()
            if profile is not None:
                profile.enable()
            outcomes = await asyncio.gather(*(self._groups.join(self._kind, intent) for intent in intents))
            if profile is not None:
                profile.disable()
            spent.append(time.process_time() - begin)
            placed = [one for one in outcomes if isinstance(one, Answered) and one.response.status_code == 201]
            assert len(placed) == size, outcomes
        return spent

    def _intent(self) -> Intent[OrderCreate]:
        buyer_id, body, wanted = next(self._orders)
        request = _request(next(self._numbers))
        key = request_key(request, buyer_id, str(uuid4()), body)
        return Intent(request, session_of(buyer_id), key, wanted, Trace(request.state.request_id))


def _request(number: int) -> Request:
    scope = {"type": "http", "method": "POST", "scheme": "http", "server": ("waybill", 80), "path": "/v1/orders"}
    return Request({**scope, "query_string": b"", "headers": [], "state": {"request_id": f"request-{number}"}})


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        shop = open_shop(url, _BUYERS)
        place_waiting(url, shop, EARLIER_ORDERS, options.items)
        costs = uvloop.run(_measure(stage, some_orders(shop, options.items), options))
        check_books(stage, "shop")
    _report(costs, as_json=options.json)
    return 0


async def _measure(stage: Stage, orders: Sequence[Order], options: argparse.Namespace) -> list[Cost]:
    settings = stage.settings("shop", group_commit_size=max(options.sizes))
    own: dict[int, list[float]] = {size: [] for size in options.sizes}
    servers: dict[int, list[float]] = {size: [] for size in options.sizes}
    calls: dict[int, float] = {}
    async with (
        open_database(settings, "benchmark", Limits.of_requests(settings)) as database,
        Groups(settings, database.write, _Silent()) as groups,
    ):
        customers = _Customers(groups, orders)
        await customers.place(max(options.sizes), _WARMUP)
        spare_what_stays()
        for _ in range(options.rounds):
            for size in options.sizes:
                postgres = -family_cpu_seconds(stage.postgres_pid)
                own[size] += await customers.place(size, options.groups)
                postgres += family_cpu_seconds(stage.postgres_pid)
                servers[size].append(postgres / options.groups)
        for size in options.sizes:
            profile = cProfile.Profile()
            await customers.place(size, _COUNTED, profile)
            # Its type does not show it.
            calls[size] = pstats.Stats(profile).total_calls / _COUNTED  # type: ignore[attr-defined]
    return [
        Cost(size, percentile(sorted(own[size]), 0.2) * 1000, min(servers[size]) * 1000, calls[size])
        for size in options.sizes
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.groups", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 16, 64], help="orders in a group")
    parser.add_argument("--groups", type=int, default=150, help="groups of each size in a round (default: 150)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--items", type=int, default=3, help="lines per order (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _report(costs: Sequence[Cost], *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {"costs": [asdict(one) for one in costs]}
        print(json.dumps(document, indent=2))
        return
    table = Table("orders in a group", "API ms", "an order", "PostgreSQL ms", "an order", "calls in the API")
    for column in table.columns:
        column.justify = "right"
    for one in costs:
        table.add_row(
            f"{one.size}",
            f"{one.api_ms:.2f}",
            f"{one.api_ms / one.size:.3f}",
            f"{one.postgres_ms:.2f}",
            f"{one.postgres_ms / one.size:.3f}",
            f"{one.calls:,.0f}",
        )
    console = Console(width=120, highlight=False)
    console.print(table)
    few, many = costs[0], costs[-1]
    if few.size < many.size:
        fixed = [
            before - (after - before) / (many.size - few.size) * few.size
            for before, after in (
                (few.api_ms, many.api_ms),
                (few.postgres_ms, many.postgres_ms),
                (few.calls, many.calls),
            )
        ]
        console.print(
            f"From the first and the last line follows the fixed cost of a group: {fixed[0]:.2f} ms of the API, "
            f"{fixed[1]:.2f} ms of PostgreSQL, {fixed[2]:,.0f} calls.",
            soft_wrap=True,
        )


if __name__ == "__main__":
    sys.exit(main())
