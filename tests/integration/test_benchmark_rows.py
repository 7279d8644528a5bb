"""The rows that benchmarks insert with set-based SQL are the same as those that Waybill writes."""

from collections import Counter
from typing import Any

import psycopg

from benchmarks.outbox.events import PINGS, WATCHED, Events, Ping, fill, write_log
from benchmarks.outbox.months import add_months, earlier_months, fill_all_months, partitions_a_look_up
from benchmarks.outbox.recorder import record as record_many
from benchmarks.shop import open_shop, place_waiting, release_waiting
from services.database import Database, make_session_factory
from services.outbox.events import Event, Trace
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.roles import superuser_of

# What differs from event to event.
_OWN = {"id", "event_id", "position", "aggregate", "occurred_at", "transaction_id", "payload", "request_id"}


def columns(url: str, event_type: str) -> list[dict[str, Any]]:
    """The log and outbox columns of each event of a type, by id, without those that are unique to it."""
    queries = (
        "SELECT to_jsonb(events) FROM events WHERE type = %s ORDER BY id",
        "SELECT to_jsonb(outbox) - 'available_at' || jsonb_build_object("
        "'due', available_at IS NULL OR available_at <= now()) FROM outbox WHERE type = %s ORDER BY event_id",
    )
    with psycopg.connect(url) as connection:
        logged, waiting = (connection.execute(query.encode(), [event_type]).fetchall() for query in queries)
    return [
        {name: value for row in rows for name, value in row[0].items() if name not in _OWN}
        for rows in zip(logged, waiting, strict=True)
    ]


def payloads(url: str) -> list[tuple[str, dict[str, Any]]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT aggregate, payload FROM events ORDER BY id").fetchall()


async def record(database: Database, event: Event) -> None:
    async with UnitOfWork(database.write, trace=Trace("benchmark")) as uow:
        uow.record(event)
        await uow.commit()


async def test_filled_events_are_those_that_a_unit_of_work_records(database: Database, database_url: str) -> None:
    await record(database, Ping(key=1, number=0, text="ping 0"))
    fill(database_url, Events(3, aggregates=10))
    recorded, *filled = columns(database_url, Ping.type)
    assert filled == [recorded] * 3
    for aggregate, payload in payloads(database_url):
        assert Ping.model_validate(payload).aggregate == aggregate


async def test_placed_orders_wait_as_those_that_the_api_places(database: Database, database_url: str) -> None:
    shop = open_shop(database_url, buyers=2)
    place_waiting(database_url, shop, 2, items=1)
    with psycopg.connect(database_url) as connection:
        release_waiting(connection)
    await record(database, Ping(key=1, number=0, text="ping 0"))
    (recorded,) = columns(database_url, Ping.type)
    placed = columns(database_url, "order.placed")
    assert placed == [recorded | {"type": "order.placed"}] * 2


def test_the_watched_aggregate_is_one_block_or_spread_evenly(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        write_log(connection, Events(100, aggregates=10, watched=20, block_at=30))
        keys = [payload["key"] for _, payload in payloads(database_url)]
        assert [number for number, key in enumerate(keys) if key == WATCHED] == list(range(30, 50))
        connection.execute("SET session_replication_role = replica; TRUNCATE events")
        write_log(connection, Events(100, aggregates=10, watched=20))
        keys = [payload["key"] for _, payload in payloads(database_url)]
        assert [number for number, key in enumerate(keys) if key == WATCHED] == list(range(0, 100, 5))
        assert len(Counter(keys)) == 11


def test_released_events_come_in_the_order_of_the_log_and_as_often_as_wanted(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        log = write_log(connection, Events(10, aggregates=10))
        log.release(connection, 4, 3)
        log.release(connection, 5, 1)
        numbers = connection.execute(
            "SELECT (payload ->> 'number')::int FROM outbox JOIN events ON id = event_id ORDER BY outbox.position"
        ).fetchall()
    assert [number for (number,) in numbers] == [4, 5, 6, 5]


def test_the_types_are_mixed_over_the_events_and_within_aggregates(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        write_log(connection, Events(1_000, aggregates=10, types=5))
        found = connection.execute("SELECT aggregate, type FROM events").fetchall()
    assert {type_ for _, type_ in found} == {ping.type for ping in PINGS}
    assert all(count > 150 for count in Counter(type_ for _, type_ in found).values())
    assert len({*found}) == 50


async def test_recorded_events_are_split_into_commits_and_each_is_recorded_once(
    database: Database, database_url: str
) -> None:
    # Its clients lock nothing: the order of their events does not matter.
    factory = make_session_factory(database.engine)
    assert await record_many(factory, events=25, a_commit=10, aggregates=7, clients=2) == 3
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT (payload ->> 'number')::int, transaction_id::text, events.aggregate"
            " FROM events JOIN outbox ON id = event_id"
        ).fetchall()
    assert sorted(number for number, _, _ in found) == list(range(25))
    assert sorted(Counter(transaction for _, transaction, _ in found).values()) == [5, 10, 10]
    assert {aggregate for _, _, aggregate in found} == {f"ping/{key}" for key in range(1, 8)}


def test_every_month_has_waiting_events_and_a_look_up_reads_one_partition(settings: Settings) -> None:
    partitions = add_months(settings, earlier_months())
    fill_all_months(superuser_of(settings), Events(40, aggregates=10))
    with psycopg.connect(superuser_of(settings)) as connection:
        found = connection.execute(
            "SELECT events.tableoid::regclass::text FROM outbox JOIN events ON id = event_id ORDER BY outbox.position"
        ).fetchall()
    months = Counter(name for (name,) in found)
    assert [*months.values()] == [40] * 14
    assert months.keys() < partitions
    # In turn: the first batch has events of all months.
    assert len({name for (name,) in found[:500]}) == 14
    assert partitions_a_look_up(superuser_of(settings)) == 1.0
