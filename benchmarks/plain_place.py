"""The baseline of placing orders, in a separate process: plain asyncpg, the same rows, the fewest statements.

Seven statements per order: BEGIN, the products, SAVEPOINT, the hold, RELEASE, all the other rows, COMMIT.
"""

import hashlib
import json
import random
from decimal import Decimal
from typing import Any

from benchmarks.load import Seen, run_job
from benchmarks.plain_clients import run_clients
from services.fields import new_id

_PRODUCTS = """
    SELECT products.id, products.sku, products.name, products.price, products.is_active, accounts.id AS account_id
    FROM products JOIN accounts ON accounts.user_id = products.seller_id WHERE products.id = ANY($1::bigint[])
"""

_HOLD = """
    WITH buyer AS (
        UPDATE accounts SET held = held + $2 WHERE user_id = $1 AND posted - held >= $2 RETURNING id
    )
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT share.id, buyer.id, share.account_id, share.amount, 'order', 'pending', $3, now() + interval '1 day'
    FROM buyer, unnest($4::uuid[], $5::bigint[], $6::numeric[]) AS share(id, account_id, amount)
"""

_WRITE = """
    WITH key AS (
        INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body)
        VALUES ($2, 'POST', '/v1/orders', $3, $4, 201, $5, $6)
    ), placed AS (
        INSERT INTO orders (id, buyer_id, status, total, item_count) VALUES ($1, $2, 'pending', $7, $8)
    ), lines AS (
        INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
        SELECT $1, line, product_id, quantity, unit_price FROM unnest($9::bigint[], $10::integer[], $11::numeric[])
            WITH ORDINALITY AS line(product_id, quantity, unit_price, line)
    ), moved AS (
        INSERT INTO order_transitions (order_id, to_status) VALUES ($1, 'pending')
    ), logged AS (
        INSERT INTO events (id, type, version, aggregate, payload, request_id)
        VALUES ($12, 'order.placed', 1, $13, $14, $15)
    )
    INSERT INTO outbox (event_id, aggregate, type, version) VALUES ($12, $13, 'order.placed', 1)
"""


async def place(connection: Any, order: dict[str, Any]) -> None:
    """Place one order in one transaction."""
    buyer_id, body = order["buyer_id"], order["body"].encode()
    wanted = json.loads(body)["items"]
    order_id, event_id = new_id(), new_id()
    await connection.execute("BEGIN")
    products = {row["id"]: row for row in await connection.fetch(_PRODUCTS, [item["product_id"] for item in wanted])}
    shares: dict[int, Decimal] = {}
    items = []
    for line, item in enumerate(wanted, start=1):
        product = products[item["product_id"]]
        price = product["price"] * item["quantity"]
        shares[product["account_id"]] = shares.get(product["account_id"], Decimal(0)) + price
        items.append(
            {
                "line": line,
                "product_id": product["id"],
                "quantity": item["quantity"],
                "unit_price": str(product["price"]),
                "line_total": str(price),
                "product": {"id": product["id"], "sku": product["sku"], "name": product["name"]},
            }
        )
    total = sum(shares.values(), Decimal(0))
    await connection.execute("SAVEPOINT hold")
    ids = [new_id() for _ in shares]
    held = await connection.execute(_HOLD, buyer_id, total, order_id, ids, list(shares), list(shares.values()))
    assert held != "INSERT 0 0"
    await connection.execute("RELEASE hold")
    reply = {
        "id": str(order_id),
        "reference": None,
        "status": "pending",
        "total": str(total),
        "item_count": len(items),
        "version": 1,
        "buyer": {"id": buyer_id, "full_name": f"User {buyer_id}"},
        "items": items,
    }
    headers = {"content-type": "application/json", "location": f"/v1/orders/{order_id}", "etag": '"1"'}
    await connection.execute(
        _WRITE,
        order_id,
        buyer_id,
        str(event_id),
        hashlib.sha256(body).digest(),
        json.dumps(headers),
        json.dumps(reply).encode(),
        total,
        len(items),
        [item["product_id"] for item in wanted],
        [item["quantity"] for item in wanted],
        [products[item["product_id"]]["price"] for item in wanted],
        event_id,
        f"order/{order_id}",
        json.dumps({"order_id": str(order_id), "buyer_id": buyer_id, "total": str(total)}),
        str(event_id),
    )
    await connection.execute("COMMIT")


async def run(job: dict[str, Any]) -> Seen:
    orders = job["orders"]
    random.shuffle(orders)
    return await run_clients(job, orders, place)


if __name__ == "__main__":
    run_job(run)
