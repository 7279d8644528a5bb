"""What a slice of a sweep costs: it reads its own rows from an index, and none of earlier slices.

This holds for any number of due rows, whatever the statistics, and for custom and generic plans.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.credits.holds import queries as hold_queries
from services.orders.expiry import queries as expiry_queries
from services.settings import Settings
from services.sql import Statement
from services.sweeps import repository
from services.sweeps.repository import BEFORE_ALL
from tests.integration.test_outbox_plans import nodes
from tests.roles import superuser_of

SLICE = 200
DUE = 20_000
BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)
HALF_WAY = BEGINNING + timedelta(seconds=DUE // 2), UUID(int=0)

# A second apart; and as many of each that are not due, or that are due but belong to the other sweep.
FILL = f"""
    INSERT INTO users (email, full_name, hashed_password)
    SELECT format('user%s@example.com', n), 'A user', '!' FROM generate_series(1, 2) AS n;
    INSERT INTO accounts (user_id, posted, held) SELECT id, 1000000, 100000 FROM users;
    INSERT INTO orders (id, buyer_id, status, total, item_count, expires_at)
    SELECT gen_random_uuid(), (SELECT min(id) FROM users), 'awaiting_payment', 1, 1, '{BEGINNING}'::timestamptz
        + n * CASE WHEN n <= {DUE} THEN interval '1 second' ELSE interval '1 day' END
    FROM generate_series(1, {2 * DUE}) AS n;
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT gen_random_uuid(), payer.id, payer.id + 1, 1, kind, 'pending',
        CASE kind WHEN 'order' THEN gen_random_uuid() END, '{BEGINNING}'::timestamptz
        + n * CASE WHEN n <= {DUE} THEN interval '1 second' ELSE interval '1 day' END
    FROM generate_series(1, {2 * DUE}) AS n, unnest(ARRAY['order', 'transfer']) AS kind,
        (SELECT min(id) AS id FROM accounts WHERE user_id IS NOT NULL) AS payer
"""

FIND: dict[str, Statement] = {
    "unpaid orders": expiry_queries.UNPAID,
    "orders' holds": expiry_queries.HELD,
    "holds between users": hold_queries.DUE,
}

LOCK: dict[str, tuple[Statement, str, str]] = {
    "orders": (expiry_queries.LOCK, "ids", "SELECT id FROM orders WHERE expires_at > $1 ORDER BY expires_at"),
    "orders' holds": (
        hold_queries.LOCK_OF_ORDERS,
        "order_ids",
        "SELECT order_id FROM transfers WHERE order_id IS NOT NULL AND expires_at > $1 ORDER BY expires_at",
    ),
    "holds between users": (
        hold_queries.LOCK_DUE,
        "ids",
        "SELECT id FROM transfers WHERE order_id IS NULL AND expires_at > $1 ORDER BY expires_at",
    ),
}


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Any]:
    connected = await asyncpg.connect(superuser_of(settings), server_settings={"jit": "off", "random_page_cost": "1.1"})
    for table in ("orders", "transfers"):
        # Statistics are taken, and dead rows removed, when the test says so.
        await connected.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    yield connected
    await connected.close()


async def cost(connection: Any, statement: Statement, after: tuple[datetime, UUID]) -> tuple[int, int]:
    """The pages and rows that a slice reads, including rows that it discards."""
    plan = await explain(connection, statement, {"expires_at": after[0], "id": after[1], "limit": SLICE})
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], rows_read(plan)


async def explain(connection: Any, statement: Statement, arguments: dict[str, Any]) -> dict[str, Any]:
    """The plan with actual numbers; rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        begin = repository._BEGIN
        await connection.fetch(begin.sql, *begin.arguments({"sweep": "orders", "milliseconds": "1000"}))
        found = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement.sql}", *statement.arguments(arguments)
        )
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(found)[0]["Plan"]
    return plan


def rows_read(plan: dict[str, Any]) -> int:
    """The rows that table scans found, including those that they discarded."""
    scans = [node for node in nodes(plan) if "Relation Name" in node]
    read = (node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) for node in scans)
    return int(sum(read))


async def assert_slices_read_only_themselves(connection: Any, said: str) -> None:
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        for name, statement in FIND.items():
            for after in (BEFORE_ALL, HALF_WAY):
                pages, read = await cost(connection, statement, after)
                # A page of the table for each row at most, some of the index, and the root and the branches above it.
                assert (read, pages <= SLICE + 50) == (SLICE, True), f"{name}, {said}, {mode}: {pages} pages"
        for name, (statement, parameter, ids) in LOCK.items():
            some = [row[0] for row in await connection.fetch(f"{ids} LIMIT {SLICE}", HALF_WAY[0])]
            read = rows_read(await explain(connection, statement, {parameter: some}))
            # Each row, and the payers' accounts.
            assert read <= SLICE + 3, f"locking {name}, {said}, {mode}: {read} rows"


async def fill(connection: Any) -> None:
    await connection.execute(f"SET session_replication_role = replica; {FILL}")


async def test_with_and_without_statistics_a_slice_reads_its_own_rows(connection: Any) -> None:
    await fill(connection)
    await assert_slices_read_only_themselves(connection, "no statistics")
    await connection.execute("ANALYZE orders, transfers")
    await assert_slices_read_only_themselves(connection, "analyzed")


async def test_with_the_statistics_of_empty_tables_a_slice_reads_its_own_rows(connection: Any) -> None:
    await connection.execute("ANALYZE orders, transfers")
    await fill(connection)
    await assert_slices_read_only_themselves(connection, "analyzed when empty")


async def test_a_slice_does_not_read_the_dead_rows_of_the_slices_before_it(connection: Any, settings: Settings) -> None:
    await fill(connection)
    await connection.execute("ANALYZE orders, transfers")
    somebody = await asyncpg.connect(superuser_of(settings))
    try:
        # An old snapshot keeps dead rows from being removed.
        held = somebody.transaction(isolation="repeatable_read")
        await held.start()
        await somebody.fetch("SELECT FROM orders LIMIT 1")
        half = f"expires_at <= '{HALF_WAY[0]}'"
        await connection.execute(f"UPDATE orders SET status = 'cancelled', expires_at = NULL WHERE {half}")
        await connection.execute(f"UPDATE transfers SET state = 'expired', resolved_at = now() WHERE {half}")
        for name, statement in FIND.items():
            from_the_start, _ = await cost(connection, statement, BEFORE_ALL)
            pages, read = await cost(connection, statement, HALF_WAY)
            assert from_the_start > 5 * pages, f"{name}: there are no dead rows to be passed over"
            assert (read, pages <= SLICE + 50) == (SLICE, True), f"{name}: {pages} pages"
        await held.rollback()
    finally:
        await somebody.close()
