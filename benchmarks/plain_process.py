"""The baseline of processing orders, in a separate process: plain asyncpg, the same effects, the fewest statements.

Six statements per batch: BEGIN, claim and lock the orders, lock the stock and read the lines, lock the accounts and
read the holds, write everything, COMMIT.
"""

import json
import os
import time
from collections import defaultdict
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks.load import Seen, run_job
from benchmarks.usage import Meter
from services.fields import new_id

_CLAIM = """
    WITH locked AS MATERIALIZED (
        SELECT position, event_id, aggregate FROM outbox WHERE available_at IS NULL
        ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED
    )
    SELECT locked.position, orders.id, orders.total FROM locked
    JOIN events ON events.id = locked.event_id
    JOIN orders ON orders.id = (events.payload ->> 'order_id')::uuid
    WHERE orders.status = 'pending' AND NOT EXISTS (
        SELECT FROM outbox AS earlier WHERE earlier.aggregate = locked.aggregate
        AND earlier.position < locked.position AND earlier.position NOT IN (SELECT position FROM locked)
    ) AND NOT EXISTS (
        SELECT FROM dead_letters
        WHERE dead_letters.aggregate = locked.aggregate AND dead_letters.position < locked.position
    )
    ORDER BY orders.id FOR NO KEY UPDATE OF orders
"""

_LINES = """
    SELECT order_id, product_id, quantity, on_hand - reserved AS available
    FROM order_items JOIN inventory USING (product_id)
    WHERE order_id = ANY($1::uuid[]) ORDER BY product_id FOR NO KEY UPDATE OF inventory
"""

_HOLDS = """
    WITH hold AS (
        SELECT id, order_id, debit_account_id, credit_account_id, amount FROM transfers
        WHERE order_id = ANY($1::uuid[]) AND kind = 'order' AND state = 'pending'
    ), account AS (
        SELECT id, posted, held, version FROM accounts
        WHERE id IN (SELECT debit_account_id FROM hold UNION SELECT credit_account_id FROM hold)
        ORDER BY id FOR NO KEY UPDATE
    )
    SELECT hold.id, order_id, amount, debit.id AS debit_id, credit.id AS credit_id, debit.posted AS debit_posted,
        debit.held AS debit_held, debit.version AS debit_version, credit.posted AS credit_posted,
        credit.held AS credit_held, credit.version AS credit_version
    FROM hold
    JOIN account AS debit ON debit.id = debit_account_id
    JOIN account AS credit ON credit.id = credit_account_id
    ORDER BY hold.id
"""

_WRITE = """
    WITH stock AS (
        UPDATE inventory SET reserved = inventory.reserved + change.reserved
        FROM unnest($1::bigint[], $2::bigint[]) AS change(product_id, reserved)
        WHERE inventory.product_id = change.product_id
    ), posted AS (
        UPDATE transfers SET state = 'posted', posted_amount = amount, resolved_at = now()
        WHERE id = ANY($3::uuid[])
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT * FROM unnest($4::bigint[], $5::bigint[], $6::uuid[], $7::numeric[], $8::numeric[])
    ), balanced AS (
        UPDATE accounts SET posted = new.posted, held = new.held, version = new.version
        FROM unnest($9::bigint[], $10::numeric[], $11::numeric[], $12::bigint[]) AS new(id, posted, held, version)
        WHERE accounts.id = new.id
    ), moved AS (
        UPDATE orders SET status = 'confirmed', version = version + 1, updated_at = clock_timestamp()
        WHERE id = ANY($13::uuid[])
    ), noted AS (
        INSERT INTO order_transitions (order_id, from_status, to_status)
        SELECT id, 'pending', 'confirmed' FROM unnest($13::uuid[]) AS id
    ), logged AS (
        INSERT INTO events (id, type, version, aggregate, payload)
        SELECT id, 'order.confirmed', 1, aggregate, payload::jsonb
        FROM unnest($14::uuid[], $15::text[], $16::text[]) AS new(id, aggregate, payload)
    )
    DELETE FROM outbox WHERE position = ANY($17::bigint[])
"""


async def process_batch(connection: Any, size: int) -> int:
    """Process one batch in one transaction; returns the number of orders confirmed."""
    await connection.execute("BEGIN")
    claimed = await connection.fetch(_CLAIM, size)
    if not claimed:
        await connection.execute("COMMIT")
        return 0
    ids = [row["id"] for row in claimed]
    reserved: dict[int, int] = defaultdict(int)
    for line in await connection.fetch(_LINES, ids):
        reserved[line["product_id"]] += line["quantity"]
        assert reserved[line["product_id"]] <= line["available"], "the benchmark's shop has unlimited stock"
    # posted, held, version of each account.
    balances: dict[int, list[Any]] = {}
    entries: list[tuple[int, int, UUID, Decimal, Decimal]] = []
    holds = await connection.fetch(_HOLDS, ids)
    for hold in holds:
        debit = balances.setdefault(hold["debit_id"], [hold["debit_posted"], hold["debit_held"], hold["debit_version"]])
        credit = balances.setdefault(
            hold["credit_id"], [hold["credit_posted"], hold["credit_held"], hold["credit_version"]]
        )
        amount = hold["amount"]
        debit[1] -= amount
        for account_id, balance, signed in ((hold["debit_id"], debit, -amount), (hold["credit_id"], credit, amount)):
            balance[0] += signed
            balance[2] += 1
            entries.append((account_id, balance[2], hold["id"], signed, balance[0]))
    await connection.execute(
        _WRITE,
        list(reserved),
        list(reserved.values()),
        [hold["id"] for hold in holds],
        *map(list, zip(*entries, strict=True)),
        list(balances),
        *map(list, zip(*balances.values(), strict=True)),
        ids,
        [new_id() for _ in ids],
        [f"order/{order_id}" for order_id in ids],
        [json.dumps({"order_id": str(row["id"]), "total": str(row["total"])}) for row in claimed],
        [row["position"] for row in claimed],
    )
    await connection.execute("COMMIT")
    return len(ids)


async def run(job: dict[str, Any]) -> Seen:
    seen = Seen()
    meter = Meter(os.getpid(), job["postgres_pid"])
    connection = await asyncpg.connect(job["database_url"], server_settings={"jit": "off"})
    meter.start()
    while True:
        started = time.perf_counter()
        processed = await process_batch(connection, job["batch_size"])
        if not processed:
            break
        seen.replies += processed
        seen.latencies.append(time.perf_counter() - started)
    meter.stop()
    await connection.close()
    seen.read(meter, os.getpid())
    return seen


if __name__ == "__main__":
    run_job(run)
