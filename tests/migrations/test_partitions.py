"""The event log's months: bounds that fit UUIDv7, and partitions that are created in time."""

import asyncio
from datetime import UTC, date, datetime
from itertools import pairwise
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from services.database import Database, open_database
from services.fields import new_id
from services.outbox.retention.repository import (
    DEFAULT_PARTITION,
    ensure_partitions,
    is_partition,
    month_bounds,
    months_from,
    partition_name,
)
from services.settings import Settings
from tests.migrations.schema import upgrade

MILLISECOND = 1_000_000
"""In nanoseconds."""


def id_at(moment: datetime, offset_milliseconds: int = 0) -> UUID:
    """An id as the application makes it at that moment."""
    return uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000 + offset_milliseconds * MILLISECOND)


def smallest_and_largest_id(moment: datetime, offset_milliseconds: int) -> tuple[UUID, UUID]:
    """The ids of that millisecond with all random bits zero and one (RFC 9562: version 7, variant 10)."""
    milliseconds = int(moment.timestamp()) * 1000 + offset_milliseconds
    head = milliseconds << 80
    return (
        UUID(int=head | 0x7000_8000_0000_0000_0000),
        UUID(int=head | 0x7FFF_BFFF_FFFF_FFFF_FFFF),
    )


async def write_event(connection: AsyncConnection, event_id: UUID) -> None:
    await connection.execute(
        text("INSERT INTO events (id, type, version, aggregate, payload) VALUES (:id, 'a.b', 1, 'a/1', '{}')"),
        {"id": event_id},
    )


async def partition_of(connection: AsyncConnection, event_id: UUID) -> str:
    found = await connection.scalar(
        text("SELECT tableoid::regclass::text FROM events WHERE id = :id"), {"id": event_id}
    )
    return str(found)


@pytest.mark.parametrize(("year", "month"), [(1970, 1), (2024, 2), (2026, 11), (2026, 12), (9999, 11)])
def test_bounds_hold_every_id_of_the_month_and_no_other(year: int, month: int) -> None:
    start, end = month_bounds(year, month)
    first = datetime(year, month, 1, tzinfo=UTC)
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)

    assert start <= smallest_and_largest_id(first, 0)[0]
    assert smallest_and_largest_id(following, -1)[1] < end
    assert smallest_and_largest_id(following, 0)[0] >= end
    if year > 1970:
        assert smallest_and_largest_id(first, -1)[1] < start
    assert start <= id_at(first) < end
    assert start <= id_at(following, -1) < end


def test_months_follow_each_other_without_a_gap() -> None:
    months = months_from(date(2026, 11, 30), 14)
    assert months[0] == (2026, 11)
    assert months[1:4] == [(2026, 12), (2027, 1), (2027, 2)]
    for this, following in pairwise(months):
        assert month_bounds(*this)[1] == month_bounds(*following)[0]


def test_partitions_are_known_by_their_names() -> None:
    assert is_partition(partition_name(2026, 3))
    assert is_partition(DEFAULT_PARTITION)
    assert not is_partition("events")
    assert not is_partition("events_archive")


async def test_migration_makes_this_month_and_the_next_three(database: Database) -> None:
    async with database.engine.begin() as connection:
        assert await ensure_partitions(connection, 3, datetime.now(UTC).date()) == []
        event_id = new_id()
        await write_event(connection, event_id)
        today = datetime.now(UTC)
        assert await partition_of(connection, event_id) == partition_name(today.year, today.month)


async def test_migration_and_cron_job_agree_on_the_bounds_of_a_month(database: Database) -> None:
    async with database.engine.begin() as connection:
        bounds = text(
            "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition AND relkind = 'r'"
        )
        made = {name: str(bound) for name, bound in await connection.execute(bounds)}
    expected = {DEFAULT_PARTITION: "DEFAULT"}
    for month in months_from(datetime.now(UTC).date(), 3):
        start, end = month_bounds(*month)
        expected[partition_name(*month)] = f"FOR VALUES FROM ('{start}') TO ('{end}')"
    assert made == expected


async def test_an_event_outside_all_months_is_still_written(database: Database) -> None:
    event_id = id_at(datetime(2099, 5, 1, tzinfo=UTC))
    async with database.engine.begin() as connection:
        await write_event(connection, event_id)
        assert await partition_of(connection, event_id) == DEFAULT_PARTITION


async def test_missing_months_are_made_once(database: Database) -> None:
    async with database.engine.begin() as connection:
        made = await ensure_partitions(connection, 2, date(2050, 11, 15))
    assert made == ["events_2050_11", "events_2050_12", "events_2051_01"]
    async with database.engine.begin() as connection:
        assert await ensure_partitions(connection, 2, date(2050, 11, 15)) == []
        assert await ensure_partitions(connection, 2, date(2050, 12, 1)) == ["events_2051_02"]


async def test_first_and_last_millisecond_land_in_their_month(database: Database) -> None:
    new_year = datetime(2051, 1, 1, tzinfo=UTC)
    last, first = smallest_and_largest_id(new_year, -1)[1], smallest_and_largest_id(new_year, 0)[0]
    async with database.engine.begin() as connection:
        await ensure_partitions(connection, 1, date(2050, 12, 31))
        await write_event(connection, last)
        await write_event(connection, first)
        assert await partition_of(connection, last) == "events_2050_12"
        assert await partition_of(connection, first) == "events_2051_01"


async def test_a_new_partition_has_the_logs_key_and_defaults(database: Database) -> None:
    event_id = id_at(datetime(2050, 11, 2, tzinfo=UTC))
    async with database.engine.begin() as connection:
        await ensure_partitions(connection, 0, date(2050, 11, 1))
        await write_event(connection, event_id)
        written = await connection.execute(
            text("SELECT occurred_at, transaction_id = pg_current_xact_id() FROM events WHERE id = :id"),
            {"id": event_id},
        )
        occurred_at, same_transaction = written.one()
    assert occurred_at is not None
    assert same_transaction
    async with database.engine.connect() as connection:
        with pytest.raises(DBAPIError, match="duplicate key"):
            await write_event(connection, event_id)


async def test_events_that_came_before_their_partition_move_into_it(database: Database) -> None:
    early, other = id_at(datetime(2050, 11, 2, tzinfo=UTC)), id_at(datetime(2051, 5, 1, tzinfo=UTC))
    async with database.engine.begin() as connection:
        await write_event(connection, early)
        await write_event(connection, other)
        before = (await connection.execute(text("SELECT * FROM events ORDER BY id"))).all()
    async with database.engine.begin() as connection:
        assert await ensure_partitions(connection, 0, date(2050, 11, 1)) == ["events_2050_11"]
        assert await partition_of(connection, early) == "events_2050_11"
        assert await partition_of(connection, other) == DEFAULT_PARTITION
        assert (await connection.execute(text("SELECT * FROM events ORDER BY id"))).all() == before


async def test_two_runs_at_once_make_each_month_once(database: Database) -> None:
    today = date(2050, 11, 1)
    async with database.engine.connect() as first, database.engine.connect() as second:
        assert len(await ensure_partitions(first, 3, today)) == 4
        waiting = asyncio.create_task(ensure_partitions(second, 3, today))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        await first.commit()
        assert await asyncio.wait_for(waiting, 5) == []
        await second.commit()


async def test_writers_and_readers_continue_while_a_partition_is_created(database: Database) -> None:
    now_id = new_id()
    async with database.engine.connect() as job, database.engine.connect() as writer:
        await ensure_partitions(job, 0, date(2050, 11, 1))
        await writer.execute(text("SET LOCAL lock_timeout = '1s'"))
        await write_event(writer, now_id)
        assert await partition_of(writer, now_id)
        await writer.commit()
        await job.commit()


async def test_a_tenants_log_gets_its_own_partitions(database: Database, settings_of_superuser: Settings) -> None:
    await asyncio.to_thread(upgrade, settings_of_superuser.database_url, schema="tenant_a")
    tenant = settings_of_superuser.model_copy(update={"database_schema": "tenant_a"})
    async with open_database(tenant, "test") as opened:
        for engine in (database.engine, opened.engine):
            async with engine.begin() as connection:
                assert await ensure_partitions(connection, 0, date(2050, 11, 1)) == ["events_2050_11"]
        async with opened.engine.connect() as connection:
            schemas = await connection.scalars(
                text(
                    "SELECT relnamespace::regnamespace::text FROM pg_class"
                    " WHERE relname = 'events_2050_11' AND relispartition ORDER BY 1"
                )
            )
            assert schemas.all() == ["public", "tenant_a"]
