"""Orders and transfers sent to Waybill over HTTP, and the same as plain asyncpg writes them.

What `place_orders`, `transfers` and `intake` have in common.
"""

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields, replace
from statistics import median
from typing import Any, TypeAlias

import psycopg

from benchmarks.report import Measured, percentile
from benchmarks.sessions import session_of
from benchmarks.shop import Shop
from benchmarks.stage import Stage, check_books, run_beside, running_api
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings

WARMUP_SECONDS = 2.0
POOL = 16
"""Database connections of an API process, all of which it keeps."""
_DIFFERENT = 5000

Requests: TypeAlias = list[tuple[str, str, str]]
"""The parts before and after the key, and the status of the reply."""

Order: TypeAlias = dict[str, Any]
"""`buyer_id`, `body` as JSON, and the `status` of the reply if it is not 201."""


def some_orders(shop: Shop, items: int) -> list[Order]:
    """Different orders of this many lines each."""
    chance = random.Random(1)
    orders = []
    for number in range(_DIFFERENT):
        products = chance.sample(shop.product_ids, items)
        lines = [{"product_id": product_id, "quantity": chance.randint(1, 3)} for product_id in products]
        buyer_id = shop.buyer_ids[number % len(shop.buyer_ids)]
        orders.append({"buyer_id": buyer_id, "body": json.dumps({"items": lines})})
    return orders


def order_requests(settings: Settings, orders: Sequence[Order], keys: Mapping[int, str] | None = None) -> Requests:
    """The requests that place these orders, with the buyers' API keys if given, otherwise with access tokens."""
    tokens = Tokens.from_settings(settings)
    shown = keys or {buyer_id: tokens.make(session_of(buyer_id)) for buyer_id in {one["buyer_id"] for one in orders}}
    return [
        _request("/v1/orders", shown[order["buyer_id"]], order["body"], order.get("status", "201")) for order in orders
    ]


def transfer_requests(settings: Settings, bank: Shop) -> Requests:
    """Single transfers, each between two random users."""
    return _transfers(settings, bank, _DIFFERENT, 1)


def batch_requests(settings: Settings, bank: Shop, batches: int, size: int) -> Requests:
    """Batches of independent transfers, each from one user to many."""
    return _transfers(settings, bank, batches, size)


def _transfers(settings: Settings, bank: Shop, number: int, size: int) -> Requests:
    tokens = Tokens.from_settings(settings)
    chance = random.Random(1)
    requests = []
    for _ in range(number):
        sender, *recipients = chance.sample(bank.buyer_ids, size + 1)
        items = [{"to_user_id": to, "amount": _amount(chance), "note": f"number {to}"} for to in recipients]
        if size == 1:
            requests.append(_request("/v1/transfers", tokens.make(session_of(sender)), json.dumps(items[0]), "201"))
        else:
            body = json.dumps({"mode": "independent", "transfers": items})
            requests.append(_request("/v1/transfers/batch", tokens.make(session_of(sender)), body, "200"))
    return requests


def _request(path: str, token: str, body: str, status: str) -> tuple[str, str, str]:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: waybill\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\nIdempotency-Key: "
    )
    return head, f"\r\n\r\n{body}", status


def _amount(chance: random.Random) -> str:
    return f"{chance.randint(1, 999) / 100:.2f}"


def plain_orders(stage: Stage, source: str, job: dict[str, Any], orders: Sequence[Order]) -> Measured:
    """Place orders with plain asyncpg, in a copy of the database `source`."""
    with stage.copy(source, "plain") as url:
        seen = run_beside("benchmarks.plain_place", {**_timed(stage, job), "database_url": url, "orders": [*orders]})
        check_books(stage, "plain")
    return measured("plain asyncpg", seen)


def plain_transfers(stage: Stage, source: str, job: dict[str, Any], bank: Shop) -> Measured:
    """Transfer credits between random users with plain asyncpg, in a copy of the database `source`."""
    with stage.copy(source, "plain") as url:
        with psycopg.connect(url) as connection:
            accounts = connection.execute("SELECT user_id, id FROM accounts WHERE user_id IS NOT NULL").fetchall()
        account_of: dict[int, int] = dict(accounts)
        chance = random.Random(1)
        transfers = []
        for _ in range(_DIFFERENT):
            sender, recipient = chance.sample(bank.buyer_ids, 2)
            transfers.append((account_of[sender], account_of[recipient], _amount(chance)))
        seen = run_beside(
            "benchmarks.plain_transfer", {**_timed(stage, job), "database_url": url, "transfers": transfers}
        )
        check_books(stage, "plain")
    return measured("plain asyncpg", seen, unit="transfers")


def send(
    stage: Stage,
    source: str,
    job: dict[str, Any],
    requests_of: Callable[[Settings], Requests],
    *,
    processes: int = 1,
    check: Callable[[str, int], None] | None = None,
    beside: Callable[[Settings], AbstractContextManager[None]] | None = None,
    against: Callable[[dict[str, Any]], AbstractContextManager[None]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Send requests to API processes that use a copy of the database `source`; returns what the load generator saw.

    `job` has `clients`, `seconds` and more options of `benchmarks.load`. Ends the benchmark if a reply has the wrong
    status, or if the books do not balance afterwards. `check` gets the copy's address and the number of replies.
    `beside` is what runs meanwhile, `against` what else is sent to the same processes, and `settings` are those of the
    API that differ from the benchmark's.
    """
    with stage.copy(source, "service") as url:
        wanted = stage.settings(
            "service", **{"database_pool_size": POOL, "database_max_overflow": 0, **(settings or {})}
        )
        with ExitStack() as stack:
            if beside is not None:
                stack.enter_context(beside(wanted))
            apis = [stack.enter_context(running_api(stage, wanted, f"api-{n}")) for n in range(processes)]
            target = {
                "pids": [pid for pid, _ in apis],
                "ports": [port for _, port in apis],
                "host": LOOPBACK,
            }
            if against is not None:
                stack.enter_context(against({**_timed(stage, {}), **target}))
            target["requests"] = requests_of(wanted)
            seen = run_beside("benchmarks.load", {**_timed(stage, job), **target})
        if seen["wrong"]:
            log = stage.log("api-0")
            sys.exit(f"some replies did not have the expected status: {seen['wrong']}\n{seen['example']}\n{log}")
        check_books(stage, "service")
        if check is not None:
            check(url, seen["replies"])
    return seen


def _timed(stage: Stage, job: dict[str, Any]) -> dict[str, Any]:
    return {"warmup": WARMUP_SECONDS, "postgres_pid": stage.postgres_pid, **job}


def measured(name: str, seen: dict[str, Any], size: int = 1, unit: str = "orders") -> Measured:
    """What was seen, for each of the `size` units in a request."""
    done = seen["replies"] * size
    latencies = sorted(seen["latencies"])
    others = seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"] - seen["own_cpu"]
    return Measured(
        name=name,
        done=done,
        seconds=seen["seconds"],
        cpu_ms=seen["cpu"] * 1000 / done,
        postgres_cpu_ms=seen["postgres_cpu"] * 1000 / done,
        others_cpu=others / seen["seconds"],
        p50_ms=percentile(latencies, 0.50) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        peak_rss_mib=seen["peak_rss_mib"],
        unit=unit,
    )


def middle(runs: Sequence[Measured]) -> Measured:
    """The median of each figure of the runs; its rate is the median rate."""
    numbers = [one.name for one in fields(Measured) if one.name not in ("name", "unit", "done", "seconds")]
    medians = {name: median(getattr(run, name) for run in runs) for name in numbers}
    return replace(runs[0], done=round(median(run.rate for run in runs) * 1000), seconds=1000.0, **medians)
