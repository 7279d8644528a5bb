"""The plans of the statements that a worker runs repeatedly: no scan of the whole outbox, no sort of the backlog.

This holds for any size of the outbox, whatever the statistics (they may be from an empty or a huge queue), and for
custom and generic plans.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest

from services.outbox.engine import queries
from services.outbox.engine.repository import claim_settings
from services.outbox.models import MAX_POSITION
from services.settings import Settings
from services.sql import Statement
from tests.roles import superuser_of

SMALL, LARGE, WAITING = 300, 200_000, 10_000
BATCH = 500
TYPES = [f"type.{number}" for number in range(5)]

FILL = """
    INSERT INTO outbox (event_id, aggregate, type, available_at, waits)
    SELECT gen_random_uuid(), 'thing/' || n % 100000, 'type.' || n % 5,
        CASE WHEN n <= $2 THEN CASE n % 3 WHEN 0 THEN 'infinity' WHEN 1 THEN now() + interval '1 h' ELSE now() END END,
        CASE WHEN n <= $2 THEN CASE n % 3 WHEN 0 THEN 'behind' WHEN 1 THEN 'retry' ELSE 'asked' END END
    FROM generate_series(1, $1::bigint) AS n
"""
SIZES = {"empty": (0, 0), "small": (SMALL, 30), "large": (LARGE, 0), "large, many wait": (LARGE, WAITING)}


def statements(first: int, positions: Sequence[int]) -> dict[str, tuple[Statement, dict[str, Any]]]:
    """The statements that a worker runs, with realistic arguments."""
    each: list[Any] = list(positions)
    aggregates = [f"thing/{number}" for number in each]
    versions = [1] * 5
    span = {"types": TYPES, "starts": [first] * 5, "versions": versions}
    sizes = {"ends": [MAX_POSITION] * 5, "ready": [BATCH // 5] * 5, "due": [BATCH // 10] * 5}
    words = ["because"] * len(each)
    return {
        "claim": (queries.CLAIM, {**span, **sizes, "floor": first, "near": 4 * BATCH}),
        "look": (queries.LOOK, {**span, "floor": first}),
        "complete": (queries.COMPLETE, {"positions": each, "transaction": None}),
        "park": (queries.PARK, {"positions": each}),
        "put off": (
            queries.PUT_OFF,
            {
                "positions": each,
                "waits": ["retry"] * len(each),
                "counts": [1] * len(each),
                "once": [False] * len(each),
                "delays": [1.0] * len(each),
                "errors": words,
                "failures": ["{}"] * len(each),
            },
        ),
        "begin attempts": (queries.BEGIN_ATTEMPTS, {"positions": each, "delay": 5.0, "counts": 0}),
        "take up": (queries.TAKE_UP, {"positions": each, "attempts": [0] * len(each)}),
        "leave": (queries.LEAVE, {"positions": each, "counts": 0}),
        "put behind": (queries.PUT_BEHIND, {"positions": each, "delays": [1.0] * len(each)}),
        "hold back": (queries.HOLD_BACK, {"aggregates": aggregates, "positions": each, "most": 100}),
        "bury": (
            queries.BURY,
            {
                "positions": each,
                "errors": words,
                "fingerprints": words,
                "failures": ["{}"] * len(each),
                "blocks": [True] * len(each),
                "reasons": ["handler_error"] * len(each),
                "counts": [1] * len(each),
            },
        ),
        "park unknown": (queries.PARK_UNKNOWN, {"types": TYPES, "versions": versions, "floor": first, "slice": 2000}),
        "wake": (queries.WAKE, {"aggregates": aggregates, "positions": each, "most": 20}),
    }


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def faults(plan: dict[str, Any]) -> list[str]:
    """The parts of the plan that read or sort more than they should."""
    found = []
    for node in nodes(plan):
        kind, table = node["Node Type"], node.get("Relation Name")
        if (
            kind == "Seq Scan"
            and table == "outbox"
            and node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0) > SMALL
        ):
            found.append("reads all of the outbox")
        actual = node.get("Actual Rows", 0) * node.get("Actual Loops", 1) + node.get("Rows Removed by Filter", 0)
        if table == "outbox" and actual > 20 * BATCH:
            found.append(f"{kind} of {node.get('Index Name')} reads {actual:.0f} rows")
        if "Sort" in kind and node["Plans"][0].get("Actual Rows", 0) > 4 * BATCH:
            found.append(f"sorts {node['Plans'][0]['Actual Rows']} rows")
    return found


@pytest.fixture
async def connection(settings: Settings) -> Any:
    connected = await asyncpg.connect(superuser_of(settings), server_settings={"jit": "off"})
    # Statistics are taken when the test says so.
    await connected.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    yield connected
    await connected.close()


async def begin(connection: Any) -> None:
    settings = claim_settings(30.0)
    await connection.execute(queries.SET_LOCAL.sql, list(settings), list(settings.values()))


async def explain(connection: Any, statement: Statement, arguments: dict[str, Any]) -> dict[str, Any]:
    """The plan with actual numbers; rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        if statement in (queries.CLAIM, queries.LOOK, queries.PARK_UNKNOWN):
            await begin(connection)
        found = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement.sql}", *statement.arguments(arguments)
        )
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(found)[0]["Plan"]
    return plan


async def assert_plans(connection: Any, size: str, statistics: str) -> None:
    waiting = SIZES[size][1]
    positions = list(range(waiting + 1, waiting + 101))
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        wrong = {
            name: said
            for name, (statement, arguments) in statements(waiting, positions).items()
            if (said := faults(await explain(connection, statement, arguments)))
        }
        assert wrong == {}, f"{statistics}, {mode}"


@pytest.mark.parametrize("size", SIZES)
async def test_without_statistics_and_with_them_a_worker_reads_what_it_takes_and_sorts_no_backlog(
    connection: Any, size: str
) -> None:
    await connection.execute(FILL.replace("$1", str(SIZES[size][0])).replace("$2", str(SIZES[size][1])))
    await assert_plans(connection, size, "no statistics")
    await connection.execute("ANALYZE outbox")
    await assert_plans(connection, size, "analyzed")


@pytest.mark.parametrize("size", SIZES)
async def test_with_the_statistics_of_an_empty_outbox_a_worker_reads_what_it_takes_and_sorts_no_backlog(
    connection: Any, size: str
) -> None:
    await connection.execute("ANALYZE outbox")
    await connection.execute(FILL.replace("$1", str(SIZES[size][0])).replace("$2", str(SIZES[size][1])))
    await assert_plans(connection, size, "analyzed when empty")


HOT = """
    INSERT INTO outbox (event_id, aggregate, type, available_at, waits)
    SELECT gen_random_uuid(), 'thing/hot', 'type.0',
        CASE WHEN n <= $1 THEN now() WHEN n <= $2 THEN 'infinity'::timestamptz END, CASE WHEN n <= $2 THEN 'behind' END
    FROM generate_series(1, 40000) AS n
"""


def read(plan: dict[str, Any]) -> tuple[int, int]:
    """The rows of the outbox that a plan reads, and the pages that it touches."""
    scans = [node for node in nodes(plan) if node.get("Relation Name") == "outbox" and "Scan" in node["Node Type"]]
    rows = sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    return int(rows), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_however_many_rows_of_an_aggregate_wait_a_statement_reads_only_its_first_ones(
    connection: Any, mode: str, analyzed: bool
) -> None:
    await connection.execute(f"SET plan_cache_mode = {mode}")
    most = 1000
    hot = {"aggregates": ["thing/hot"], "positions": [0], "most": most}

    async def cost(awake: int, waiting: int, statement: Statement, arguments: dict[str, Any]) -> tuple[int, int]:
        await connection.execute("TRUNCATE outbox RESTART IDENTITY")
        await connection.execute(HOT.replace("$1", str(awake)).replace("$2", str(waiting)))
        if analyzed:
            await connection.execute("ANALYZE outbox")
        return read(await explain(connection, statement, arguments))

    rows, pages = await cost(0, 40_000, queries.WAKE, hot)
    assert most < rows <= 3 * most
    assert pages < 60 * most
    rows, pages = await cost(1, 40_000, queries.WAKE, hot)
    assert rows == 1, "nothing is woken while an earlier row is due"
    assert pages < 50
    # All sleep already, all are due, all are ready.
    for awake, waiting in ((0, 40_000), (40_000, 40_000), (0, 0)):
        rows, pages = await cost(awake, waiting, queries.HOLD_BACK, hot)
        assert rows <= 3 * most
        assert pages < 60 * most
    rows, pages = await cost(1, 20_000, queries.PARK, {"positions": list(range(30_000, 30_500))})
    assert rows <= 500 * 3
    assert pages < 60 * 500


async def test_dead_letters_that_do_not_block_are_not_read_to_find_one_that_does(connection: Any) -> None:
    await connection.execute(
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, blocks)"
        " SELECT -n, gen_random_uuid(), 'thing/hot', 'type.0', 1, '', n > 20000 FROM generate_series(1, 20001) AS n"
    )
    await connection.execute(HOT.replace("$1", "0").replace("$2", "0"))
    for mode in ("force_custom_plan", "force_generic_plan"):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        claim = statements(0, [])["claim"]
        for statement, arguments in (claim, (queries.PARK, {"positions": list(range(1, 101))})):
            plan = await explain(connection, statement, arguments)
            scans = [node for node in nodes(plan) if node.get("Relation Name") == "dead_letters"]
            read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)
            assert max(read) <= 1
        await connection.execute("ANALYZE dead_letters")


async def test_the_claim_leaves_the_planner_as_it_was_for_the_handlers(connection: Any) -> None:
    async with connection.transaction():
        await begin(connection)
        claim, arguments = statements(0, [1])["claim"]
        assert await connection.fetchval("SHOW enable_seqscan") == "off"
        await connection.fetch(claim.sql, *claim.arguments(arguments))
        ways = [await connection.fetchval(f"SHOW enable_{way}") for way in ("seqscan", "bitmapscan", "sort")]
        assert ways == ["on", "on", "on"]
