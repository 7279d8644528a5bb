"""The backlog: what counts as overdue, and that a scrape reads a bounded number of rows, however long the outbox is."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from services.cli.outbox.types import _at_least
from services.database import Database
from services.outbox.control.repository import COUNTED
from services.outbox.control.schemas import Waiting
from services.outbox.counting import queries
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.roles import superuser_of

MANY = 50_000
PUT = """
    WITH event AS (
        INSERT INTO events (id, type, version, aggregate, payload, occurred_at)
        VALUES (gen_random_uuid(), $1, 1, $2, '{}', now() - interval '1 hour') RETURNING *
    ) INSERT INTO outbox (event_id, aggregate, type, waits, available_at, attempts)
    SELECT id, aggregate, type, $3, now() + CAST($4 AS text)::interval, $5 FROM event
"""
FILL = {
    "ready": (None, "NULL"),
    "retried": ("retry", "now() - interval '1 s'"),
    "unknown": ("unknown", "now() - interval '1 s'"),
    "parked": ("behind", "'infinity'"),
    "deferred": ("asked", "now() + interval '1 h'"),
}
"""What the outbox is full of."""


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Any]:
    connected = await asyncpg.connect(superuser_of(settings), server_settings={"jit": "off"})
    await connected.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    yield connected
    await connected.close()


async def backlog(database: Database) -> dict[str, Any]:
    async with UnitOfWork(database.read) as uow:
        return await uow.control.backlog()


@pytest.mark.parametrize(
    ("waits", "after", "seconds"),
    [
        pytest.param(None, None, 3600, id="ready"),
        pytest.param("retry", "-60 s", 60, id="retried"),
        pytest.param("behind", "-60 s", 60, id="woken"),
        pytest.param("asked", "-60 s", 60, id="deferred until now"),
        pytest.param("asked", "60 s", 0, id="deferred"),
        pytest.param("unknown", "-60 s", 0, id="unknown"),
        pytest.param("behind", "infinity", 0, id="parked"),
    ],
)
async def test_the_oldest_due_event_is_none_that_is_parked(
    connection: Any, database: Database, waits: str | None, after: str | None, seconds: float
) -> None:
    if after == "infinity":
        await connection.execute(PUT, "order.placed", "order/1", waits, "60 s", 0)
        await connection.execute("UPDATE outbox SET available_at = 'infinity'")
    else:
        await connection.execute(PUT, "order.placed", "order/1", waits, after, 0)
    assert (await backlog(database))["oldest_due_seconds"] == pytest.approx(seconds, abs=20)
    # The same behind a dead letter is not due, and behind one that lets it pass it is.
    for blocks, left in ((True, 0), (False, seconds)):
        await connection.execute(
            "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, blocks)"
            " VALUES (0, gen_random_uuid(), 'order/1', 'order.placed', 1, '', $1)"
            " ON CONFLICT (position) DO UPDATE SET blocks = excluded.blocks",
            blocks,
        )
        assert (await backlog(database))["oldest_due_seconds"] == pytest.approx(left, abs=20)


@pytest.mark.parametrize(
    ("waits", "after", "seconds"),
    [
        pytest.param("retry", "1 h", 0, id="a retry to come"),
        pytest.param("unknown", "30 s", 0, id="an unknown event"),
        pytest.param("retry", "-60 s", 3600, id="a retry that is due"),
        pytest.param("asked", "1 h", 3600, id="a deferred event"),
    ],
)
async def test_an_event_behind_one_that_waits_is_not_due_before_that_one(
    connection: Any, database: Database, waits: str, after: str, seconds: float
) -> None:
    await connection.execute(PUT, "order.placed", "order/1", waits, after, 1)
    await connection.execute(PUT, "order.paid", "order/1", None, None, 0)
    await connection.execute(PUT, "order.paid", "order/2", "asked", "1 h", 0)
    assert (await backlog(database))["oldest_due_seconds"] == pytest.approx(seconds, abs=20)
    await connection.execute(PUT, "order.paid", "order/2", None, None, 0)
    assert (await backlog(database))["oldest_due_seconds"] == pytest.approx(3600, abs=20)


async def test_events_of_a_paused_type_are_not_due_until_it_is_resumed(connection: Any, database: Database) -> None:
    await connection.execute(PUT, "order.placed", "order/1", None, None, 0)
    await connection.execute(PUT, "order.placed", "order/2", "retry", "-60 s", 1)
    await connection.execute("INSERT INTO outbox_types (type, paused) VALUES ('order.placed', true)")
    assert (await backlog(database))["oldest_due_seconds"] == 0
    await connection.execute("UPDATE outbox_types SET paused = false")
    assert (await backlog(database))["oldest_due_seconds"] == pytest.approx(3600, abs=20)


async def test_what_is_parked_does_not_hide_what_is_overdue(connection: Any, database: Database) -> None:
    await connection.execute(PUT, "a.strange", "order/1", "unknown", "-1 day", 0)
    await connection.execute(PUT, "order.placed", "order/2", "retry", "-60 s", 2)
    await connection.execute(PUT, "order.placed", "order/3", "retry", "60 s", 1)
    found = await backlog(database)
    assert found.pop("oldest_due_seconds") == pytest.approx(60, abs=20)
    assert found == {
        "waiting": 3,
        "waiting_is_more": False,
        "retrying": 2,
        "retrying_is_more": False,
        "dead_letters": 0,
        "dead_letters_is_more": False,
    }


async def test_waiting_events_are_counted_by_type_and_reason(connection: Any, database: Database) -> None:
    for event_type, aggregate, waits, after in (
        ("order.placed", "order/1", None, None),
        ("order.placed", "order/2", None, None),
        ("order.placed", "order/3", "retry", "-60 s"),
        ("order.placed", "order/4", "retry", "60 s"),
        ("order.placed", "order/5", "behind", "60 s"),
        ("a.strange", "thing/1", "unknown", "-60 s"),
        ("a.paused", "thing/2", None, None),
        ("a.paused", "thing/3", "retry", "-60 s"),
        ("a.paused", "thing/4", "retry", "60 s"),
    ):
        await connection.execute(PUT, event_type, aggregate, waits, after, 0)
    await connection.execute("UPDATE outbox SET available_at = 'infinity' WHERE waits = 'behind'")
    await connection.execute("INSERT INTO outbox_types (type, paused) VALUES ('a.paused', true)")
    async with UnitOfWork(database.read) as uow:
        found = await uow.control.waiting()
    assert found == [
        Waiting("a.paused", {"paused": 2, "retry": 1}, 0),
        Waiting("a.strange", {"unknown": 1}, 0),
        Waiting("order.placed", {"ready": 2, "retry": 2, "behind": 1}, 3),
    ]


@pytest.mark.parametrize("kind", FILL)
@pytest.mark.parametrize("statistics", ["none", "of an empty outbox", "fresh"])
async def test_a_scrape_reads_a_bounded_number_of_rows(
    connection: Any, database: Database, kind: str, statistics: str
) -> None:
    waits, available_at = FILL[kind]
    if statistics == "of an empty outbox":
        await connection.execute("ANALYZE outbox, dead_letters")
    await connection.execute(
        "INSERT INTO outbox (event_id, aggregate, type, waits, available_at, attempts)"
        f" SELECT gen_random_uuid(), 'thing/' || n, 'thing.made', $2, {available_at}, 1"
        " FROM generate_series(1, $1::int) AS n",
        MANY,
        waits,
    )
    await connection.execute(
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " SELECT -n, gen_random_uuid(), 'other/' || n, 'thing.made', 1, '' FROM generate_series(1, $1::int) AS n",
        MANY,
    )
    if statistics == "fresh":
        await connection.execute("ANALYZE outbox, dead_letters")
    for statement, restored in ((queries.BACKLOG, "on"), (queries.WAITING, "off")):
        async with connection.transaction():
            await connection.fetch(queries.PLAN_BY_INDEX.sql, ["enable_bitmapscan", "enable_sort"])
            found = await connection.fetchval(
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement.sql}",
                *statement.arguments({"counted": COUNTED}),
            )
            assert await connection.fetchval("SHOW enable_sort") == restored
        reads = {
            f"{node['Node Type']} of {node['Relation Name']}": _rows(node)
            for node in _nodes(json.loads(found)[0]["Plan"])
            if node.get("Relation Name") in ("outbox", "dead_letters")
        }
        assert reads
        assert {name: number for name, number in reads.items() if number > COUNTED + 1} == {}
    counted = await backlog(database)
    assert (counted["waiting"], counted["waiting_is_more"]) == (COUNTED, True)
    assert (counted["dead_letters"], counted["dead_letters_is_more"]) == (COUNTED, True)
    assert counted["retrying_is_more"] is (kind in {"retried", "unknown", "deferred"})


def test_a_count_that_stopped_says_so() -> None:
    assert (_at_least(10_000, True), _at_least(10_000, False)) == ("10000 or more", "10000")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _rows(node: dict[str, Any]) -> float:
    return float((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
