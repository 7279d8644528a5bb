"""`UnitOfWork`: rolls back unless told otherwise, savepoints, events and the doorbell."""

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import ClassVar

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import QueuePool

from services.catalog.models import Category
from services.catalog.schemas import CategoryCreate
from services.database import Database
from services.fields import new_id
from services.outbox.events import Event, Recorded, Trace
from services.sql import Statement, Write, Writing
from services.unit_of_work import UnitOfWork, background
from tests.factories import count_statements

DANGLING = text("""
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT gen_random_uuid(), min(id), min(id) + 1, 1, 'order', 'pending', gen_random_uuid(), now() FROM accounts
""")


class Noted(Event):
    """Only for the log."""

    type: ClassVar[str] = "test.noted"

    number: int = 0

    @property
    def aggregate(self) -> str:
        return "test/1"


class Queued(Noted):
    """For a worker."""

    type: ClassVar[str] = "test.queued"
    queued: ClassVar[bool] = True


class Undo(Exception):
    """Makes a block fail."""


class Bell:
    """Counts its rings, and records what was committed when it rang."""

    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


async def count(database: Database, table: str) -> int:
    async with database.engine.connect() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_rolls_back_unless_told_otherwise(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
    assert (await count(database, "categories"), await count(database, "events")) == (0, 0)


async def test_a_session_that_has_been_used_is_no_cycle_of_objects(database: Database) -> None:
    gc.disable()
    try:
        async with UnitOfWork(database.write) as uow:
            await uow.users.get(1)
            session = weakref.ref(uow.session)
        del uow
        assert session() is None
    finally:
        gc.enable()


async def test_rolls_back_when_the_block_raises(database: Database) -> None:
    with suppress(Undo):
        async with UnitOfWork(database.write) as uow:
            await uow.categories.create(CategoryCreate(name="Lamps"))
            raise Undo
    assert await count(database, "categories") == 0


async def test_commits_what_was_done_and_recorded_together(database: Database) -> None:
    async with UnitOfWork(database.write, trace=Trace("request-1", "trace-1")) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Noted(number=1))
        uow.record(Queued(number=2))
        assert await count(database, "categories") == 0
        await uow.commit()
        assert uow.recorded == ()
    async with database.engine.connect() as connection:
        events = await connection.execute(
            text("SELECT type, version, aggregate, payload, request_id, traceparent FROM events ORDER BY type")
        )
        assert [tuple(row) for row in events] == [
            ("test.noted", 1, "test/1", {"number": 1}, "request-1", "trace-1"),
            ("test.queued", 1, "test/1", {"number": 2}, "request-1", "trace-1"),
        ]
        queued = await connection.execute(
            text("SELECT outbox.type, events.type FROM outbox JOIN events ON id = event_id")
        )
        assert [tuple(row) for row in queued] == [("test.queued", "test.queued")]
    assert await count(database, "categories") == 1


async def test_events_and_rows_are_written_by_one_transaction(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
        await uow.commit()
    async with database.engine.connect() as connection:
        same = text(
            "SELECT (SELECT xmin FROM categories)::text = (SELECT xmin FROM events)::text"
            " AND (SELECT xmin FROM events)::text = (SELECT xmin FROM outbox)::text"
        )
        assert (await connection.execute(same)).scalar_one()


async def test_queued_events_keep_the_order_they_were_recorded_in(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        for number in range(50):
            uow.record(Queued(number=number))
        await uow.commit()
    async with database.engine.connect() as connection:
        numbers = await connection.scalars(
            text("SELECT payload->>'number' FROM outbox JOIN events ON events.id = event_id ORDER BY outbox.position")
        )
        assert [int(number) for number in numbers] == list(range(50))


async def test_rings_only_after_a_commit_and_only_for_queued_events(database: Database) -> None:
    bell = Bell()
    async with UnitOfWork(database.write, bell) as uow:
        await uow.commit()
        uow.record(Noted())
        await uow.commit()
        assert bell.rings == 0
        uow.record(Queued())
        uow.record(Queued())
        assert bell.rings == 0
        await uow.commit()
        assert bell.rings == 1
        await uow.commit()
        assert bell.rings == 1
        uow.record(Queued())
    assert bell.rings == 1
    assert await count(database, "outbox") == 2


async def test_a_failing_commit_leaves_nothing_and_rings_nothing(database: Database) -> None:
    bell = Bell()
    async with UnitOfWork(database.write, bell) as other:
        await other.session.exec(text("INSERT INTO accounts (system_name) VALUES ('other')"))  # type: ignore[call-overload]
        await other.commit()
    async with UnitOfWork(database.write, bell) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
        await (await uow.session.connection()).execute(DANGLING)
        with pytest.raises(IntegrityError):
            await uow.commit()
    tables = ("categories", "events", "outbox", "transfers")
    assert [await count(database, table) for table in tables] == [0, 0, 0, 0]
    assert bell.rings == 0


async def test_a_connection_cut_before_the_commit_leaves_nothing(database: Database) -> None:
    bell = Bell()
    async with UnitOfWork(database.write, bell) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
        pid = (await (await uow.session.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one()
        async with database.engine.connect() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            await uow.commit()
    assert (await count(database, "categories"), await count(database, "events")) == (0, 0)
    assert bell.rings == 0


async def test_a_savepoint_undoes_only_its_block_and_its_events(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="before"))
        uow.record(Noted(number=1))
        with suppress(Undo):
            async with uow.savepoint():
                await uow.categories.create(CategoryCreate(name="inside"))
                uow.record(Noted(number=2))
                raise Undo
        await uow.categories.create(CategoryCreate(name="after"))
        uow.record(Noted(number=3))
        async with uow.savepoint():
            await uow.categories.create(CategoryCreate(name="kept"))
            uow.record(Noted(number=4))
        await uow.commit()
    async with database.engine.connect() as connection:
        names = await connection.scalars(text("SELECT name FROM categories ORDER BY id"))
        assert list(names) == ["before", "after", "kept"]
        numbers = await connection.scalars(
            text("SELECT (payload->>'number')::int AS number FROM events ORDER BY number")
        )
        assert list(numbers) == [1, 3, 4]


async def fail_in_a_savepoint(uow: UnitOfWork) -> None:
    async with uow.savepoint():
        raise Undo


async def test_a_savepoint_passes_the_error_on(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        with pytest.raises(Undo):
            await fail_in_a_savepoint(uow)


async def test_savepoints_nest(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        async with uow.savepoint():
            await uow.categories.create(CategoryCreate(name="outer"))
            uow.record(Noted(number=1))
            with suppress(Undo):
                async with uow.savepoint():
                    await uow.categories.create(CategoryCreate(name="inner"))
                    uow.record(Noted(number=2))
                    raise Undo
        await uow.commit()
    assert (await count(database, "categories"), await count(database, "events")) == (1, 1)


async def test_a_statement_that_fails_in_a_savepoint_leaves_the_transaction_usable(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        with pytest.raises(IntegrityError):
            async with uow.savepoint():
                await uow.categories.create(CategoryCreate(name="LAMPS"))
        assert await uow.categories.count() == 1
        await uow.commit()
    assert await count(database, "categories") == 1


async def note(uow: UnitOfWork, number: int) -> None:
    """Write an event with plain SQL immediately."""
    await uow.recording.sql.write(uow.recording.appending([Recorded(new_id(), Noted(number=number), Trace())]))


async def test_a_plain_savepoint_undoes_only_its_block_and_its_events(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await note(uow, 1)
        with suppress(Undo):
            async with uow.savepoint(plain=True):
                await note(uow, 2)
                uow.record(Noted(number=3))
                raise Undo
        with suppress(IntegrityError):
            async with uow.savepoint(plain=True):
                await note(uow, 4)
                await uow.outbox.sql.run(Statement("INSERT INTO accounts (system_name) VALUES ('issuance')"))
        async with uow.savepoint(plain=True):
            await note(uow, 5)
        await uow.commit()
    async with database.engine.connect() as connection:
        numbers = await connection.scalars(
            text("SELECT (payload->>'number')::int AS number FROM events ORDER BY number")
        )
        assert list(numbers) == [1, 5]


async def test_plain_savepoints_and_those_of_the_session_nest_in_any_order(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        async with uow.savepoint(plain=True):
            await note(uow, 1)
        async with uow.savepoint():
            async with uow.savepoint(plain=True):
                await note(uow, 2)
            with suppress(Undo):
                async with uow.savepoint(plain=True):
                    async with uow.savepoint(plain=True):
                        await note(uow, 3)
                    async with uow.savepoint():
                        await note(uow, 4)
                    raise Undo
            async with uow.savepoint(plain=True):
                await note(uow, 5)
        with suppress(Undo):
            async with uow.savepoint():
                async with uow.savepoint(plain=True):
                    await note(uow, 6)
                raise Undo
        async with uow.savepoint(plain=True):
            await note(uow, 7)
        async with uow.savepoint(plain=True, check=True):
            await note(uow, 8)
        await uow.commit()
        async with uow.savepoint(plain=True):
            await note(uow, 9)
        await uow.rollback()
        async with uow.savepoint(plain=True):
            await note(uow, 10)
        await uow.commit()
    async with database.engine.connect() as connection:
        numbers = await connection.scalars(
            text("SELECT (payload->>'number')::int AS number FROM events ORDER BY number")
        )
        assert list(numbers) == [1, 2, 5, 7, 8, 10]


async def test_objects_added_before_a_savepoint_survive_its_failure(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        category = Category(name="added, not flushed")
        uow.session.add(category)
        with suppress(Undo):
            async with uow.savepoint():
                uow.session.add(Category(name="undone"))
                await uow.session.flush()
                raise Undo
        assert category in uow.session
        assert category.name == "added, not flushed"
        assert category.id > 0
        await uow.commit()
    async with database.engine.connect() as connection:
        assert list(await connection.scalars(text("SELECT name FROM categories"))) == ["added, not flushed"]


async def test_no_connection_is_taken_before_the_first_statement(database: Database) -> None:
    pool = database.engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    async with UnitOfWork(database.write) as uow:
        _ = (uow.users, uow.orders, uow.ledger, uow.products)
        uow.record(Noted())
        await uow.rollback()
        await uow.commit()
        assert pool.checkedout() == 0
        await uow.categories.count()
        assert pool.checkedout() == 1
        await uow.commit()
        assert pool.checkedout() == 0, "the connection goes back with the commit"


async def test_repositories_are_made_once_and_share_the_session(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        assert uow.orders is uow.orders
        assert uow.orders.session is uow.users.session is uow.outbox.session is uow.session


async def test_a_rollback_discards_rows_and_events_but_what_was_read_stays_readable(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        category = await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
        await uow.rollback()
        assert category.name == "Lamps"
        assert uow.recorded == ()
        await uow.categories.create(CategoryCreate(name="Chairs"))
        await uow.commit()
    async with database.engine.connect() as connection:
        assert list(await connection.scalars(text("SELECT name FROM categories"))) == ["Chairs"]
    assert await count(database, "outbox") == 0


async def test_all_events_of_a_unit_of_work_are_written_by_one_statement(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        for number in range(30):
            uow.record(Queued(number=number))
        with count_statements(database.engine) as statements:
            await uow.commit()
    assert len(statements) == 1
    assert await count(database, "outbox") == 30


async def test_work_in_the_background_is_committed_at_the_end_of_its_block(database: Database) -> None:
    bell = Bell()
    async with background(lambda: UnitOfWork(database.write, bell)) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        uow.record(Queued())
        assert (await count(database, "categories"), bell.rings) == (0, 0)
    assert (await count(database, "categories"), await count(database, "events"), bell.rings) == (1, 1, 1)


@pytest.mark.parametrize("ending", [Undo, asyncio.CancelledError])
async def test_work_in_the_background_is_rolled_back_if_its_block_does_not_end(
    database: Database, ending: type[BaseException]
) -> None:
    async def begin_and_end() -> None:
        async with background(lambda: UnitOfWork(database.write)) as uow:
            await uow.categories.create(CategoryCreate(name="Lamps"))
            raise ending

    with pytest.raises(ending):
        await begin_and_end()
    assert await count(database, "categories") == 0


async def test_what_the_commit_raises_comes_out_of_a_block_in_the_background(database: Database) -> None:
    async def insert_twice() -> None:
        async with background(lambda: UnitOfWork(database.write)) as uow:
            await uow.categories.create(CategoryCreate(name="Lamps"))
            # Written at the commit, where it is the second of this name.
            uow.write_with_events(
                Write(Writing("again AS (INSERT INTO categories (name) VALUES ('Lamps') RETURNING 1)", "again"), {})
            )

    with pytest.raises(IntegrityError):
        await insert_twice()
    assert await count(database, "categories") == 0
