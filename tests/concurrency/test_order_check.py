"""In development, two transactions that write events of one aggregate at the same time, without a lock, are found."""

import asyncio
from contextlib import suppress

import psycopg
import pytest

from services.database import Database, open_database
from services.settings import Environment, Settings
from services.sql import Statement
from services.transaction import UnorderedEvents
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, rows
from tests.roles import superuser_of

LOCK = Statement("SELECT id FROM categories WHERE name = :name FOR UPDATE")
KEY = "hashtextextended(current_schema() || ' events of tick/a', 0)"


def work(database: Database, name: str) -> UnitOfWork:
    return UnitOfWork(database.write, name=name)


async def test_two_writers_of_an_aggregate_without_a_common_lock_are_found_and_named(database: Database) -> None:
    async with work(database, "POST /v1/one") as one, work(database, "POST /v1/other") as other:
        one.record(Tick(name="a"))
        await one.flush()
        other.record(Tick(name="a"))
        with pytest.raises(UnorderedEvents, match=r"^'POST /v1/other' and 'waybill-test: POST /v1/one' .* of tick/a"):
            await other.commit()
        await one.commit()
    assert await rows(database, "SELECT count(*) FROM events") == [1]


async def test_writers_of_other_aggregates_and_writers_one_after_the_other_are_not_refused(database: Database) -> None:
    async with work(database, "one") as one, work(database, "other") as other:
        one.record(Tick(name="a"))
        await one.flush()
        other.record(Tick(name="b"))
        await other.commit()
        one.record(Tick(name="a", number=1))
        await one.commit()
        other.record(Tick(name="a", number=2))
        await other.commit()
    assert await rows(database, "SELECT count(*) FROM events") == [4]


async def test_what_a_savepoint_undoes_was_not_written(database: Database) -> None:
    async with work(database, "one") as one, work(database, "other") as other:
        with suppress(ZeroDivisionError):
            async with one.savepoint(plain=True):
                one.record(Tick(name="a"))
                await one.flush()
                raise ZeroDivisionError
        other.record(Tick(name="a"))
        await other.commit()


async def test_many_writers_that_lock_the_aggregate_first_are_never_refused(database: Database) -> None:
    await rows(database, "INSERT INTO categories (name) VALUES ('a')")

    async def write(writer: int) -> None:
        for number in range(60):
            async with work(database, f"writer {writer}") as uow:
                await uow.outbox.sql.fetch(LOCK, name="a")
                uow.record(Tick(name="a", number=number))
                await uow.commit()

    async with asyncio.TaskGroup() as group:
        for writer in range(8):
            group.create_task(write(writer))
    assert await rows(database, "SELECT count(*) FROM events") == [480]


async def test_a_lock_that_a_transaction_still_holds_after_its_end_is_not_a_violation(
    database: Database, settings: Settings
) -> None:
    # A transaction releases its locks one after the other, shortly after it has ended: the session has no transaction.
    with psycopg.connect(superuser_of(settings), autocommit=True) as releasing:
        releasing.execute(f"SELECT pg_advisory_lock({KEY})")
        async with work(database, "the next one") as uow:
            uow.record(Tick(name="a"))
            await uow.commit()
    assert await rows(database, "SELECT count(*) FROM events") == [1]


async def test_nothing_is_checked_if_the_check_is_off(settings: Settings) -> None:
    async with open_database(settings.model_copy(update={"outbox_order_check": False}), "test") as database:
        async with work(database, "one") as one, work(database, "other") as other:
            one.record(Tick(name="a"))
            await one.flush()
            other.record(Tick(name="a"))
            await other.commit()
            await one.commit()
        assert await rows(database, "SELECT count(*) FROM events") == [2]


def test_the_check_is_on_in_development_and_off_in_production_unless_it_is_set(settings: Settings) -> None:
    def checks(**given: object) -> bool:
        return settings.model_copy(update=given).checks_order

    assert checks(environment=Environment.development, outbox_order_check=None)
    assert not checks(environment=Environment.production, outbox_order_check=None)
    assert checks(environment=Environment.production, outbox_order_check=True)
    assert not checks(environment=Environment.development, outbox_order_check=False)
