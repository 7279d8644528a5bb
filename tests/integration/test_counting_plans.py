"""What counts by type read is limited, however many events wait, also for types of which few or none are ready."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from services.outbox.control.schemas import NOT_TO_USE
from services.outbox.counting import queries
from services.settings import Settings
from services.sql import Statement
from tests.integration.test_outbox_plans import nodes
from tests.roles import superuser_of

WAITING, COUNTED = 60_000, 100

# Of the rare types, only the newest events are ready, wait for a time, or wait behind another event.
FILL = """
    INSERT INTO outbox (event_id, aggregate, type, available_at, waits)
    SELECT gen_random_uuid(), 'thing/' || n, CASE WHEN n > $1 - 30 THEN 'rare ' || n % 3 ELSE 'common' END,
        CASE n % 3 WHEN 1 THEN now() + interval '1 hour' WHEN 2 THEN timestamptz 'infinity' END,
        CASE n % 3 WHEN 1 THEN 'retry' WHEN 2 THEN 'behind' END
    FROM generate_series(1, $1::integer) AS n
"""


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connected = await asyncpg.connect(superuser_of(settings), server_settings={"jit": "off"})
    # Statistics are taken when the test says so.
    await connected.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    yield connected
    await connected.close()


STATEMENTS: dict[str, tuple[Statement, tuple[str, ...]]] = {
    "types": (queries.TYPES, NOT_TO_USE),
    "names": (queries.NAMES, NOT_TO_USE),
    "kinds of aggregates": (queries.KINDS, NOT_TO_USE),
    "backlog": (queries.BACKLOG, ("enable_bitmapscan", "enable_sort")),
    "retrying": (queries.RETRYING, ("enable_bitmapscan", "enable_sort")),
    "waiting by reason": (queries.WAITING, ("enable_bitmapscan", "enable_sort")),
}


def rows_read(plan: dict[str, Any]) -> float:
    """The rows of the outbox that are read, including those that are discarded."""
    scans = [one for one in nodes(plan) if one.get("Relation Name") == "outbox" and "Scan" in one["Node Type"]]
    return float(
        sum((one["Actual Rows"] + one.get("Rows Removed by Filter", 0)) * one["Actual Loops"] for one in scans)
    )


@pytest.mark.parametrize("analyzed", [False, True])
async def test_counts_by_type_read_no_more_events_than_they_count(
    connection: asyncpg.Connection, analyzed: bool
) -> None:
    await connection.execute("ANALYZE outbox")
    await connection.execute(FILL, WAITING)
    if analyzed:
        await connection.execute("ANALYZE outbox")
    wrong = {}
    for name, (statement, unused) in STATEMENTS.items():
        async with connection.transaction():
            await connection.fetch(queries.PLAN_BY_INDEX.sql, list(unused))
            arguments = {"counted": COUNTED} if ":counted" in statement.text else {}
            found = await connection.fetchval(
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement.sql}", *statement.arguments(arguments)
            )
        read = rows_read(json.loads(found)[0]["Plan"])
        # Of each of the three ways to wait, so many of the common type, and the few of the others; and all together.
        if read > 5 * (COUNTED + 1) + 150:
            wrong[name] = read
    assert wrong == {}


async def test_what_waits_behind_another_event_is_counted_by_type(connection: asyncpg.Connection) -> None:
    await connection.execute(FILL, 600)
    types = {row["type"]: row for row in await connection.fetch(queries.TYPES.sql, 100)}
    waiting = {(row["type"], row["reason"]): row["events"] for row in await connection.fetch(queries.WAITING.sql, 100)}
    assert {name: (row["ready"], row["waiting"]) for name, row in types.items()} == {
        # One more than is counted says that there are more.
        "common": (101, 202),
        "rare 0": (10, 0),
        "rare 1": (0, 10),
        "rare 2": (0, 10),
    }
    assert waiting == {
        ("common", "ready"): 100,
        ("common", "retry"): 100,
        ("common", "behind"): 100,
        ("rare 0", "ready"): 10,
        ("rare 1", "retry"): 10,
        ("rare 2", "behind"): 10,
    }
