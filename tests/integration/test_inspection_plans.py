"""Groups of failures read as many rows as they count, however many dead letters there are, and never sort more.

This holds whatever the statistics, and for plans with given values and for any values.
"""

import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from services.fields import now
from services.outbox.control.schemas import NOT_TO_USE
from services.outbox.counting import queries as counting
from services.outbox.inspection import queries
from services.settings import Settings
from services.sql import Statement
from tests.integration.test_outbox_plans import nodes
from tests.roles import superuser_of

LETTERS, KINDS, COUNTED, MOST = 60_000, 40, 100, 5

# Three of four are of one kind, and one kind has a single letter.
FILL = """
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, reason, died_at)
    SELECT n, gen_random_uuid(), 'order/' || n % 1000, CASE WHEN n % 4 > 0 THEN 'common' ELSE 'type ' || n % 5 END, 5,
        'ValueError: no', CASE WHEN n = 30000 THEN 'rare' WHEN n % 4 > 0 THEN 'common' ELSE 'kind ' || n % $2 END,
        'handler_error', now() - n * interval '1 second'
    FROM generate_series(1, $1::integer) AS n
"""
WANTED = ["common", "rare", "kind 0", "gone"]


@pytest.fixture
async def connection(settings: Settings) -> Any:
    connected = await asyncpg.connect(superuser_of(settings), server_settings={"jit": "off"})
    # Statistics are taken when the test says so.
    await connected.execute("ALTER TABLE dead_letters SET (autovacuum_enabled = off)")
    for name in NOT_TO_USE:
        await connected.execute(f"SET {name} = off")
    yield connected
    await connected.close()


def statements() -> dict[str, tuple[Statement, dict[str, Any], int]]:
    """The statements with realistic arguments, and the most rows that each may read of dead letters."""
    spans = {"starts_at": now() - timedelta(hours=24), "span": timedelta(hours=1)}
    groups = {"fingerprints": WANTED, "positions": [1, 30_000, 0, 0], **spans, "counted": COUNTED, "most": MOST}
    of_each = COUNTED + 1 + 24 * MOST + 2
    return {
        "kinds": (queries.KINDS, {"most": 20}, 2 * 20),
        "one kind": (queries.KIND, {"fingerprint": "rare"}, 1),
        "groups": (queries.GROUPS, groups, len(WANTED) * of_each),
        "types": (counting.TYPES, {"counted": COUNTED}, 6 * (COUNTED + 3)),
        "names": (counting.NAMES, {}, 2 * 7),
        "kinds of aggregates": (counting.KINDS, {}, 2 * 7),
    }


def rows_read(plan: dict[str, Any]) -> int:
    scans = [one for one in nodes(plan) if one.get("Relation Name") == "dead_letters" and "Scan" in one["Node Type"]]
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return int(
        sum((one["Actual Rows"] + sum(one.get(name, 0) for name in removed)) * one["Actual Loops"] for one in scans)
    )


def sorted_rows(plan: dict[str, Any]) -> float:
    return max((one["Plans"][0]["Actual Rows"] for one in nodes(plan) if "Sort" in one["Node Type"]), default=0)


async def assert_bounded(connection: Any, statistics: str) -> None:
    wrong = {}
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        for name, (statement, arguments, most) in statements().items():
            found = await connection.fetchval(
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement.sql}", *statement.arguments(arguments)
            )
            plan = json.loads(found)[0]["Plan"]
            if (read := rows_read(plan)) > most or sorted_rows(plan) > COUNTED + 1:
                wrong[name, mode] = f"reads {read} rows, sorts {sorted_rows(plan)}"
    assert wrong == {}, statistics


async def test_groups_and_types_read_no_more_dead_letters_than_they_count(connection: Any) -> None:
    await connection.execute("ANALYZE dead_letters")
    await connection.execute(FILL, LETTERS, KINDS)
    await assert_bounded(connection, "analyzed when empty")
    await connection.execute("ANALYZE dead_letters")
    await assert_bounded(connection, "analyzed")
