"""How many orders one API process accepts over HTTP: `python -m benchmarks.place_orders`."""

import argparse
import json
import random
import sys
from typing import Any

from benchmarks.report import Measured, Target, percentile, report
from benchmarks.shop import Shop, open_shop, place_waiting
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_api
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings

_DIFFERENT_ORDERS = 5000
_EARLIER_ORDERS = 20_000
_WARMUP_SECONDS = 2.0
_WANTED_RATE = 500.0


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("shop")
        shop = open_shop(stage.postgres.url("shop"), options.buyers)
        # A shop with a history, so that the planner never has to guess from an empty table.
        place_waiting(stage.postgres.url("shop"), shop, _EARLIER_ORDERS, options.items)
        orders = _orders(shop, options.items)
        job = {
            "clients": options.clients,
            "seconds": options.seconds,
            "warmup": _WARMUP_SECONDS,
            "postgres_pid": stage.postgres_pid,
        }
        plain = _plain(stage, job, orders)
        api, share = _over_http(stage, job, orders)
    report(
        f"Placing orders of {options.items} items, {options.clients} at a time, for {options.seconds:g} s",
        [plain, api],
        [Target(f"at least {_WANTED_RATE:.0f} orders/s for one API process", api.rate >= _WANTED_RATE)],
        [f"The load generator used {share:.0%} of one CPU. p50 and p99 are of one order, as the client sees it."],
        as_json=options.json,
    )
    return 0 if api.rate >= _WANTED_RATE else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.place_orders", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds per run (default: 10)")
    parser.add_argument("--clients", type=int, default=16, help="concurrent requests (default: 16)")
    parser.add_argument("--items", type=int, default=3, help="lines per order (default: 3)")
    parser.add_argument("--buyers", type=int, default=200, help="different buyers (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _orders(shop: Shop, items: int) -> list[dict[str, Any]]:
    chance = random.Random(1)
    orders = []
    for number in range(_DIFFERENT_ORDERS):
        products = chance.sample(shop.product_ids, items)
        lines = [{"product_id": product_id, "quantity": chance.randint(1, 3)} for product_id in products]
        buyer_id = shop.buyer_ids[number % len(shop.buyer_ids)]
        orders.append({"buyer_id": buyer_id, "body": json.dumps({"items": lines})})
    return orders


def _plain(stage: Stage, job: dict[str, Any], orders: list[dict[str, Any]]) -> Measured:
    stage.clone("shop", "plain")
    url = stage.postgres.url("plain")
    seen = run_beside("benchmarks.plain_place", {**job, "database_url": url, "orders": orders})
    check_books(stage, "plain")
    return _measured("plain asyncpg", seen)


def _over_http(stage: Stage, job: dict[str, Any], orders: list[dict[str, Any]]) -> tuple[Measured, float]:
    stage.clone("shop", "service")
    settings = stage.settings("service", database_pool_size=16, database_max_overflow=0)
    with running_api(stage, settings) as (pid, port):
        requests = _requests(settings, orders)
        target = {"pid": pid, "host": LOOPBACK, "port": port, "requests": requests, "status": "201"}
        seen = run_beside("benchmarks.load", {**job, **target})
    if seen["wrong"]:
        sys.exit(f"not every order was accepted: {seen['wrong']}\n{seen['example']}\n{stage.log('api')}")
    check_books(stage, "service")
    return _measured("Waybill over HTTP", seen), seen["own_cpu"] / seen["seconds"]


def _requests(settings: Settings, orders: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The parts before and after the key."""
    tokens = Tokens.from_settings(settings)
    token_of = {buyer_id: tokens.make(buyer_id) for buyer_id in {order["buyer_id"] for order in orders}}
    head = (
        "POST /v1/orders HTTP/1.1\r\nHost: waybill\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer {token}\r\nContent-Length: {length}\r\nIdempotency-Key: "
    )
    return [
        (head.format(token=token_of[order["buyer_id"]], length=len(order["body"])), f"\r\n\r\n{order['body']}")
        for order in orders
    ]


def _measured(name: str, seen: dict[str, Any]) -> Measured:
    latencies = sorted(seen["latencies"])
    return Measured(
        name=name,
        done=seen["replies"],
        seconds=seen["seconds"],
        cpu_ms=seen["cpu"] * 1000 / seen["replies"],
        postgres_cpu_ms=seen["postgres_cpu"] * 1000 / seen["replies"],
        others_cpu=(seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"] - seen["own_cpu"]) / seen["seconds"],
        p50_ms=percentile(latencies, 0.50) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        peak_rss_mib=seen["peak_rss_mib"],
    )


if __name__ == "__main__":
    sys.exit(main())
