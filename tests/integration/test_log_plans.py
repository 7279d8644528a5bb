"""A reader of the log reads only what is new, whatever the log's size and statistics."""

import re
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.database import Database
from services.outbox.log import queries
from services.outbox.log import service as log
from services.outbox.models import NOTHING_SEEN
from services.sql import Statement

EVENTS = 30_000
FILL = """
    INSERT INTO events (id, type, version, aggregate, payload, transaction_id)
    SELECT CAST(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0')
        || lpad(to_hex(number), 20, '0') AS uuid), 'a', 1, 'a/' || number, '{}',
        CAST(CAST(number / 10 + 3 AS text) AS xid8)
    FROM generate_series(1, $1::int) AS number
"""


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a log with many old events, of which one consumer has read all but the last ten."""
    opened = await asyncpg.connect(
        database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    try:
        await opened.execute(FILL, EVENTS)
        seen = EVENTS // 10 + 2
        await opened.execute("INSERT INTO log_consumers (name, seen) VALUES ('feed', $1)", (seen, seen, ()))
        yield opened
    finally:
        await opened.close()


async def touches(enough: int, connection: asyncpg.Connection, statement: Statement, **parameters: object) -> None:
    """The statement reads at most this many rows from the log's tables and indexes, including discarded ones."""
    rows = await connection.fetch(
        f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {statement.sql}", *statement.arguments(parameters)
    )
    plan = "\n".join(row[0] for row in rows)
    counts = 0.0
    scanning = False
    for line in plan.splitlines():
        if found := re.search(r"(Scan|on) .*events_\w+ .*actual rows=([\d.]+) loops=(\d+)", line):
            counts += float(found[2]) * int(found[3])
            scanning = True
        elif "->" in line:
            scanning = False
        elif scanning and (removed := re.search(r"Rows Removed by Filter: (\d+)", line)):
            counts += int(removed[1])
    assert "events_" in plan, plan
    assert counts <= enough, plan


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_a_look_at_the_log_costs_what_is_new(connection: asyncpg.Connection, analyzed: bool, plans: str) -> None:
    if analyzed:
        await connection.execute("ANALYZE events")
    await connection.execute(f"SET plan_cache_mode = {plans}")
    seen, reading = f"{EVENTS // 10 + 2}:{EVENTS // 10 + 2}:", f"{EVENTS}:{EVENTS}:"
    last = await connection.fetchval("SELECT max(position) FROM events")
    read = {"seen": seen, "reading": reading, "types": None, "limit": 100}

    page, span = queries.READ_PAGE, log.POSITIONS_PER_READ

    await touches(50, connection, queries.LOCK, name="feed")
    await touches(50, connection, queries.OPEN, seen=seen, nothing=NOTHING_SEEN)
    await touches(50, connection, queries.OPEN, seen=NOTHING_SEEN, nothing=NOTHING_SEEN)
    await touches(50, connection, page, after=last - 20, until=last, **read)
    # Read from its beginning: the planner may prefer to sort, and finds no more than a read looks at.
    await touches(2 * span, connection, page, after=0, until=span, **{**read, "seen": NOTHING_SEEN})
    await touches(50, connection, queries.LIST, most=100)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_the_lag_of_a_consumer_that_reads_the_log_again_costs_what_is_counted(
    connection: asyncpg.Connection, analyzed: bool
) -> None:
    if analyzed:
        await connection.execute("ANALYZE events")
    first, last = await connection.fetchrow("SELECT min(position), max(position) FROM events")
    middle, end = (first + last) // 2, EVENTS // 10 + 2
    await connection.execute("DELETE FROM log_consumers")
    await connection.execute(
        "INSERT INTO log_consumers (name, seen, reading, position, until) VALUES ('again', $1, $2, $3, $4)",
        (1, 1, ()),
        (end, end, ()),
        middle,
        last,
    )
    await connection.execute("SET enable_sort = off")
    await touches(250, connection, queries.LIST, most=100)
    (found,) = await connection.fetch(queries.LIST.sql, 10 * EVENTS)
    unread = "SELECT count(*) FROM events WHERE position > $1"
    assert found["events"] == await connection.fetchval(unread, middle)
