"""The largest replies, their size and how long each holds the event loop: `python -m benchmarks.pages`.

A buyer has 200 orders of 750 lines, one of which has 200 refunds of 750 lines; 750 products have descriptions of 10,000
characters. While a reply is made, another client asks for `/healthz` all the time: the longest of its waits says for
how long no one else was served.
"""

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.sessions import BEGIN, session_of
from benchmarks.stage import Stage, open_stage, running_api
from benchmarks.usage import Meter
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK

_MOST_MS = 250.0
"""The longest that a reply may hold the event loop here; see `docs/decisions/0046`."""

_FILL = """
    SET session_replication_role = replica;
    INSERT INTO users (email, full_name, hashed_password)
    VALUES ('b@example.com', 'Bea', '!'), ('s@example.com', 'Sam', '!');
    INSERT INTO accounts (user_id, posted) SELECT id, 1000000 FROM users;
    INSERT INTO categories (name) VALUES ('Lamps');
    INSERT INTO products (seller_id, category_id, sku, name, description, price)
    SELECT users.id, categories.id, 'SKU-' || n, 'Lamp ' || n, repeat('x', 10000), 1
    FROM generate_series(1, 750) AS n, users, categories WHERE full_name = 'Sam' ORDER BY n;
    INSERT INTO inventory (product_id, on_hand) SELECT id, 1000000 FROM products;
    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT gen_random_uuid(), (SELECT min(id) FROM users), 'fulfilled', 750, 750 FROM generate_series(1, 200);
    INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
    SELECT orders.id, line, (SELECT min(id) FROM products) + line - 1, 1000, 1
    FROM orders, generate_series(1, 750) AS line;
    INSERT INTO refunds (id, order_id, amount, requested_by)
    SELECT gen_random_uuid(), (SELECT id FROM orders ORDER BY id LIMIT 1), 1, (SELECT max(id) FROM users)
    FROM generate_series(1, 200);
    INSERT INTO refund_lines (refund_id, order_id, line, quantity)
    SELECT refunds.id, order_id, line, 1 FROM refunds, generate_series(1, 750) AS line
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has a large reply."""

    name: str
    method: str
    path: str
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its size, the time and the API's CPU time for it, and for how long another client was not served."""

    name: str
    kib: float
    ms: float
    cpu_ms: float
    others_wait_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument(
        "--times", type=int, default=5, help="how often each is asked for; the median counts (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with open_stage() as stage:
        replies = _measure(stage, options.times)
    if options.json:
        print(json.dumps([asdict(one) for one in replies], indent=2))
    else:
        _print(replies)
    return 1 if any(one.others_wait_ms > _MOST_MS for one in replies) else 0


def _measure(stage: Stage, times: int) -> list[Reply]:
    stage.migrate("pages")
    with psycopg.connect(stage.postgres.url("pages"), autocommit=True) as database:
        database.execute(_FILL.encode())
        database.execute(BEGIN)
        database.execute("VACUUM ANALYZE")
        row = database.execute(
            "SELECT (SELECT min(id) FROM users), (SELECT max(id) FROM users),"
            " (SELECT id::text FROM orders ORDER BY id LIMIT 1), (SELECT min(id) FROM products)"
        ).fetchone()
    assert row is not None
    # Also for code that has no budget.
    settings = stage.settings("pages", database_statement_timeout=300, database_transaction_timeout=600)
    tokens = Tokens.from_settings(settings)
    buyer, seller = ({"Authorization": f"Bearer {tokens.make(session_of(user))}"} for user in row[:2])
    with running_api(stage, settings) as (pid, port):
        return [_reply(stage, pid, port, one, times) for one in _requests(str(row[2]), row[3], row[1], buyer, seller)]


def _requests(
    order_id: str, product_id: int, seller_id: int, buyer: Mapping[str, str], seller: Mapping[str, str]
) -> Sequence[Request]:
    transfers = [{"to_user_id": seller_id, "amount": "0.01", "note": "x" * 100}] * 500
    lines = [{"product_id": product_id + number, "quantity": 1} for number in range(750)]
    upsert = [{"sku": f"SKU-{n}", "name": f"Lamp {n}", "price": "1.00", "category_id": 1} for n in range(1, 751)]
    written = {"Content-Type": "application/json"}
    batch = json.dumps({"mode": "independent", "transfers": transfers})
    return [
        Request("200 orders", "GET", "/v1/orders?limit=200", None, buyer),
        Request("200 orders with lines", "GET", "/v1/orders?limit=200&include=items", None, buyer),
        Request("one order", "GET", f"/v1/orders/{order_id}", None, buyer),
        Request("200 refunds", "GET", f"/v1/orders/{order_id}/refunds?limit=200", None, buyer),
        Request("200 products", "GET", "/v1/products?limit=200", None, {}),
        Request("placing 750 lines", "POST", "/v1/orders", json.dumps({"items": lines}), {**buyer, **written}),
        Request("500 transfers", "POST", "/v1/transfers/batch", batch, {**buyer, **written}),
        Request("750 products written", "PUT", "/v1/products", json.dumps({"products": upsert}), {**seller, **written}),
    ]


def _reply(stage: Stage, pid: int, port: int, wanted: Request, times: int) -> Reply:
    found: list[Reply] = []
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=120)
    for number in range(times + 1):
        keyed = {"Idempotency-Key": f"{wanted.name.replace(' ', '-')}-{number}"} if wanted.method == "POST" else {}
        with _Waiting(port) as waiting:
            meter = Meter(pid, stage.postgres_pid)
            meter.start()
            started = time.perf_counter()
            connection.request(wanted.method, wanted.path, wanted.body, {**wanted.headers, **keyed})
            reply = connection.getresponse()
            body = reply.read()
            ms = (time.perf_counter() - started) * 1000
            meter.stop()
        if reply.status not in (200, 201):
            sys.exit(f"{wanted.method} {wanted.path}: {reply.status} {body.decode()[:500]}")
        found.append(Reply(wanted.name, len(body) / 1024, ms, meter.cpu * 1000, waiting.longest_ms))
    connection.close()
    # The first one also warms up.
    return sorted(found[1:], key=lambda one: one.others_wait_ms)[times // 2]


class _Waiting:
    """Another client, which asks for `/healthz` all the time."""

    def __init__(self, port: int) -> None:
        self.longest_ms = 0.0
        self._port = port
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "_Waiting":
        self._thread.start()
        time.sleep(0.05)
        self.longest_ms = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=120)
        while not self._ends.is_set():
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - started) * 1000)
            time.sleep(0.001)
        connection.close()


def _print(replies: Sequence[Reply]) -> None:
    table = Table("reply", "KiB", "ms", "CPU ms of the API", "others wait, ms", title="The largest replies")
    for one in replies:
        table.add_row(one.name, f"{one.kib:,.0f}", f"{one.ms:.0f}", f"{one.cpu_ms:.0f}", f"{one.others_wait_ms:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
