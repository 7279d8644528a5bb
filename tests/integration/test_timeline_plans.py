"""The timeline of an order reads a limited number of rows, whatever else is in the tables and in their statistics."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest

from services.database import Database
from services.fields import id_at, new_id, now
from services.orders.timeline import queries
from services.orders.timeline.repository import _EXAMINED
from services.sql import Statement
from tests.factories import make_order, make_product, make_user

OTHERS = 30_000
FEW = 60
_READ = re.compile(r"(?:Scan|on) .*actual rows=([\d.]+) loops=(\d+)")
_REMOVED = re.compile(r"Rows Removed by Filter: ([\d.]+)")

FILL = """
    ALTER TABLE transfers DISABLE TRIGGER USER;
    ALTER TABLE entries DISABLE TRIGGER USER;
    INSERT INTO events (id, type, version, aggregate, payload)
    SELECT CAST(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - {others} + number), 12, '0')
        || '7' || lpad(to_hex(number), 19, '0') AS uuid), 'order.placed', 1, 'order/' || number, '{{}}'
    FROM generate_series(1, {others}) AS number;
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
    SELECT gen_random_uuid(), {payer}, {payee}, 1, 'transfer', 'posted', 1, now() - interval '1 hour'
    FROM generate_series(1, {others});
    INSERT INTO entries (account_id, version, transfer_id, amount, balance, created_at)
    SELECT {payee}, row_number() OVER (), id, 1, row_number() OVER (), now() - interval '1 hour' FROM transfers;
    INSERT INTO stock_movements (product_id, kind, order_id, pieces)
    SELECT 1, 'shipped', gen_random_uuid(), 1 FROM generate_series(1, {others});
    INSERT INTO order_transitions (order_id, to_status)
    SELECT '{other}', 'pending' FROM generate_series(1, {others});
    INSERT INTO outbox_actions (actor, action, type, event_id)
    SELECT 'x', 'replay', 'order.placed', gen_random_uuid() FROM generate_series(1, {others});
    INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body)
    SELECT {buyer}, 'POST', '/v1/orders', number, '', 201, '{{"location": "/v1/orders/1"}}', ''
    FROM generate_series(1, {others}) AS number;
    INSERT INTO transfers (
        id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id, expires_at, resolved_at
    )
    SELECT gen_random_uuid(), {payer}, {payee}, 1, 'order', 'posted', 1, '{order}', now(), now()
    FROM generate_series(1, 3);
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT {payee}, {others} + row_number() OVER (), id, 1, 1 FROM transfers WHERE order_id IS NOT NULL;
    INSERT INTO stock_movements (product_id, kind, order_id, pieces) VALUES (1, 'shipped', '{order}', 1);
    INSERT INTO order_transitions (order_id, to_status) VALUES ('{order}', 'pending');
"""


class Filled(NamedTuple):
    connection: asyncpg.Connection
    order_id: UUID
    buyer_id: int


@pytest.fixture
async def filled(database: Database) -> AsyncIterator[Filled]:
    """An order among many others, of a buyer who sent many requests and a seller who was paid for many of them."""
    buyer = await make_user(database)
    lines = [(await make_product(database), 1)]
    order, other = [await make_order(database, buyer=buyer, lines=lines) for _ in range(2)]
    opened = await asyncpg.connect(
        database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    try:
        payer, payee = [row["id"] for row in await opened.fetch("SELECT id FROM accounts ORDER BY id LIMIT 2")]
        await opened.execute(
            FILL.format(others=OTHERS, payer=payer, payee=payee, order=order.id, other=other.id, buyer=buyer.id)
        )
        yield Filled(opened, order.id, buyer.id)
    finally:
        await opened.close()


async def read(connection: asyncpg.Connection, statement: Statement, **parameters: Any) -> float:
    """How many rows the scans of the statement read, those that it then leaves out included."""
    rows = await connection.fetch(
        f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {statement.sql}", *statement.arguments(parameters)
    )
    number, loops = 0.0, 0.0
    for (line,) in rows:
        if found := _READ.search(line):
            loops = float(found[2])
            number += float(found[1]) * loops
        elif "->" in line:
            loops = 0.0
        elif removed := _REMOVED.search(line):
            number += float(removed[1]) * loops
    return number


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_a_timeline_reads_what_is_the_orders_and_a_limited_number_of_others(
    filled: Filled, analyzed: bool, plans: str
) -> None:
    connection, order_id, buyer_id = filled
    if analyzed:
        await connection.execute("ANALYZE")
    await connection.execute(f"SET plan_cache_mode = {plans}")
    of_order = {"order_id": order_id, "most": 201}
    for statement in (queries.TRANSITIONS, queries.REFUNDS, queries.TRANSFERS, queries.MOVEMENTS):
        assert await read(connection, statement, **of_order) <= FEW, statement.text
    assert await read(connection, queries.ENTRIES, examined=_EXAMINED, **of_order) <= FEW
    assert await read(connection, queries.EVENTS, ids=[new_id()]) <= FEW
    assert await read(connection, queries.FAILURES, positions=[1]) <= FEW
    assert await read(connection, queries.ACTIONS, ids=[new_id()], most=201) <= FEW
    at = now() - timedelta(seconds=20)
    await connection.execute(queries.WITHOUT_SORTING.sql.replace("LOCAL", ""))
    near = await read(
        connection,
        queries.NEAR,
        aggregate="order/1",
        types=["order.placed"],
        lows=[id_at(at - timedelta(seconds=60))],
        middles=[id_at(at)],
        highs=[id_at(at + timedelta(seconds=60))],
        examined=100,
    )
    await connection.execute(queries.SORTING.sql.replace("LOCAL", ""))
    # Each level of the plan counts them again.
    assert 100 < near <= 10 * 100
    sent = await read(
        connection,
        queries.REQUESTS,
        caller_ids=[buyer_id],
        paths=[f"/v1/orders/{order_id}/pay"],
        buyer_id=buyer_id,
        placed_at="/v1/orders",
        location="/v1/orders/2",
        examined=100,
        most=201,
    )
    assert sent <= 10 * 100
