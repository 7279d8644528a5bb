"""Placing orders: by many clients, by one, by two processes, and with orders among them that fail."""

import json
import random
from collections.abc import Sequence
from functools import partial
from statistics import median

import psycopg

from benchmarks.api_keys import make_keys
from benchmarks.intake.bench import ITEMS, Bench, Found, ratio
from benchmarks.outbox.table import Line, at_least, at_most
from benchmarks.over_http import Order, middle, plain_orders, some_orders
from benchmarks.shop import Shop

_POISONED_BUYERS = 4
_REFUSED, _POISON, _REPEATED = 0.10, 0.02, 0.05
_SEEING_ALL = 8.0
"""Seconds in which even a busy machine has seen the key of each buyer."""
_UNKNOWN_PRODUCT = 10**15
_DEAR = 10
"""A price of which three million pieces cost more than a buyer has."""

# The rules of the ledger allow these holds, but the database refuses them.
_POISONING = "ALTER TABLE transfers ADD CONSTRAINT poison CHECK (debit_account_id <> ALL (%s::bigint[])) NOT VALID"


def place(bench: Bench, clients: int) -> Found:
    """Placing orders: the group path, the single path, and plain asyncpg."""
    orders = some_orders(bench.shop, ITEMS)
    job = {"clients": clients, "seconds": bench.seconds}
    runs = bench.alternate(
        {
            "plain": lambda: plain_orders(bench.stage, "shop", job, orders),
            "single": lambda: bench.orders("single path", clients, orders, group=False),
            "group": lambda: bench.orders("group path", clients, orders, group=True),
        }
    )
    plain, single, group = (middle(runs[name]) for name in ("plain", "single", "group"))
    few = clients == 16
    lines = [
        Line(
            f"placing, {ITEMS} items, {clients} clients: to plain asyncpg",
            ratio(runs["group"], runs["plain"]),
            "x",
            at_least(1.0 if few else 1.3),
            note=f"{group.rate:,.0f} and {plain.rate:,.0f} orders/s; the single path is "
            f"{ratio(runs['single'], runs['plain']):.2f} x",
        ),
        Line(
            "… to the single path",
            ratio(runs["group"], runs["single"]),
            "x",
            at_least(2.0 if few else 2.5),
            note=f"{group.rate:,.0f} and {single.rate:,.0f} orders/s",
        ),
        Line(
            "… p50",
            group.p50_ms,
            "ms",
            None if few else at_most(single.p50_ms),
            note=f"single path {single.p50_ms:.1f} ms, plain asyncpg {plain.p50_ms:.1f} ms; "
            f"p99 {group.p99_ms:.1f}, {single.p99_ms:.1f} and {plain.p99_ms:.1f} ms",
        ),
        Line(
            "… CPU of the API for an order",
            group.cpu_ms,
            "ms",
            at_most(0.9) if few else None,
            note=f"single path {single.cpu_ms:.2f} ms, plain asyncpg {plain.cpu_ms:.2f} ms",
        ),
        Line(
            "… CPU of PostgreSQL for an order",
            group.postgres_cpu_ms,
            "ms",
            at_most(0.6) if few else None,
            note=f"single path {single.postgres_cpu_ms:.2f} ms, plain asyncpg {plain.postgres_cpu_ms:.2f} ms",
        ),
    ]
    return Found(f"Placing orders of {ITEMS} items, {clients} clients", [plain, single, group], lines)


def place_alone(bench: Bench) -> Found:
    """One client, so that each request is alone."""
    orders = some_orders(bench.shop, ITEMS)
    runs = bench.alternate(
        {
            "single": lambda: bench.orders("single path", 1, orders, group=False),
            "group": lambda: bench.orders("group path", 1, orders, group=True),
        }
    )
    single, group = middle(runs["single"]), middle(runs["group"])
    line = Line(
        "a lone request (1 client): rate to the single path's",
        ratio(runs["group"], runs["single"]),
        "x",
        at_least(0.95),
        note=f"p50 {group.p50_ms:.1f} and {single.p50_ms:.1f} ms",
    )
    return Found("Placing orders one at a time", [single, group], [line])


def place_mixed(bench: Bench) -> Found:
    """Refused orders, replayed keys, and orders that fail unexpectedly in the database, among good ones."""
    url = bench.stage.postgres.url("shop")
    bench.stage.clone("shop", "poisoned")
    good, poisoned = bench.shop.buyer_ids[:-_POISONED_BUYERS], bench.shop.buyer_ids[-_POISONED_BUYERS:]
    with psycopg.connect(url) as connection:
        dear = [row[0] for row in connection.execute("SELECT id FROM products WHERE price >= %s", [_DEAR])]
    with psycopg.connect(bench.stage.postgres.url("poisoned")) as connection:
        accounts = connection.execute("SELECT id FROM accounts WHERE user_id = ANY(%s)", [poisoned]).fetchall()
        constraint = psycopg.ClientCursor(connection).mogrify(_POISONING, [[row[0] for row in accounts]])
        connection.execute(constraint.encode())
    clean = some_orders(Shop(good, bench.shop.product_ids), ITEMS)
    mixed = mix(clean, poisoned, dear)
    runs = bench.alternate(
        {
            f"{name}, {path}": partial(
                bench.orders,
                f"{name}, {path} path",
                16,
                orders,
                "poisoned",
                group=path == "group",
                repeated=repeated,
            )
            for path in ("single", "group")
            for name, orders, repeated in (("clean", clean, 0.0), ("mixed", mixed, _REPEATED))
        }
    )
    bench.stage.drop("poisoned")
    single = ratio(runs["mixed, single"], runs["clean, single"])
    line = Line(
        f"{_REFUSED:.0%} refused, {_REPEATED:.0%} replayed keys, {_POISON:.0%} poison: rate to the clean one's",
        ratio(runs["mixed, group"], runs["clean, group"]),
        "x",
        at_least(0.8),
        note=f"on the single path {single:.2f} x",
    )
    return Found(
        "Orders of which some are refused or poison, 16 clients", [middle(found) for found in runs.values()], [line]
    )


def mix(orders: Sequence[Order], poisoned: Sequence[int], dear: Sequence[int]) -> list[Order]:
    """The orders, some of them refused (402 or 422, by turns) and some by buyers whose credits cannot be held."""
    chance = random.Random(2)
    mixed: list[Order] = []
    for number, order in enumerate(orders):
        what = chance.random()
        if what < _REFUSED and number % 2:
            products = chance.sample(dear, ITEMS)
            lines = [{"product_id": product_id, "quantity": 1_000_000} for product_id in products]
            body = {"items": lines, "on_insufficient_credits": "refuse"}
            mixed.append({**order, "body": json.dumps(body), "status": "402"})
        elif what < _REFUSED:
            body = json.loads(order["body"])
            body["items"][0]["product_id"] = _UNKNOWN_PRODUCT
            mixed.append({**order, "body": json.dumps(body), "status": "422"})
        elif what < _REFUSED + _POISON:
            # The database's refusal of the hold is not the end of the order: it awaits payment.
            mixed.append({**order, "buyer_id": chance.choice(poisoned)})
        else:
            mixed.append(order)
    return mixed


def place_with_keys(bench: Bench) -> Found:
    """Programs with API keys beside people with access tokens."""
    orders = some_orders(bench.shop, ITEMS)
    keys = make_keys(bench.stage.postgres.url("shop"))
    runs = bench.alternate(
        {
            "tokens": lambda: bench.orders("access tokens", 16, orders, group=True, warmup=_SEEING_ALL),
            "keys": lambda: bench.orders("API keys", 16, orders, group=True, keys=keys, warmup=_SEEING_ALL),
        }
    )
    tokens, of_keys = middle(runs["tokens"]), middle(runs["keys"])
    line = Line(
        "placing with API keys, 16 clients: to access tokens",
        ratio(runs["keys"], runs["tokens"]),
        "x",
        at_least(0.97),
        note=f"{of_keys.rate:,.0f} and {tokens.rate:,.0f} orders/s; CPU of the API {of_keys.cpu_ms:.3f} and "
        f"{tokens.cpu_ms:.3f} ms an order, of PostgreSQL {of_keys.postgres_cpu_ms:.3f} and "
        f"{tokens.postgres_cpu_ms:.3f} ms",
    )
    return Found("Placing orders with API keys, 16 clients", [tokens, of_keys], [line])


def place_with_limits(bench: Bench) -> Found:
    """Orders whose buyers' requests are counted, and the same with the limits off."""
    orders = some_orders(bench.shop, ITEMS)
    runs = bench.alternate(
        {
            "off": lambda: bench.orders("limits off", 16, orders, group=True, limits=False),
            "on": lambda: bench.orders("limits on", 16, orders, group=True),
        }
    )
    off, on = middle(runs["off"]), middle(runs["on"])
    cpu = median(one.cpu_ms / other.cpu_ms for one, other in zip(runs["off"], runs["on"], strict=True))
    lines = [
        Line(
            "placing with limits on, 16 clients: to limits off",
            ratio(runs["on"], runs["off"]),
            "x",
            at_least(0.97),
            note=f"{on.rate:,.0f} and {off.rate:,.0f} orders/s",
        ),
        Line(
            "… orders for the same CPU time of the API",
            cpu,
            "x",
            at_least(0.97),
            note=f"{on.cpu_ms:.3f} and {off.cpu_ms:.3f} ms an order",
        ),
    ]
    return Found("Placing orders with limits, 16 clients", [off, on], lines)


def place_by_two(bench: Bench) -> Found:
    """Two API processes beside one, with what limits them."""
    orders = some_orders(bench.shop, ITEMS)
    names = {1: "one API process", 2: "two API processes"}
    runs = bench.alternate(
        {name: partial(bench.orders, name, 64, orders, group=True, processes=number) for number, name in names.items()}
    )
    one, two = runs.values()
    line = Line(
        "two API processes to one, 64 clients",
        ratio(two, one),
        "x",
        note=f"{middle(two).rate:,.0f} and {middle(one).rate:,.0f} orders/s. CPUs of two: {bench.shares[names[2]][0]}; "
        f"of one: {bench.shares[names[1]][0]}",
    )
    return Found("Two API processes, 64 clients", [middle(one), middle(two)], [line])
