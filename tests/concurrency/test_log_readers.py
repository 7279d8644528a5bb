"""A reader of the log sees every event once, in the order of commits, each aggregate's in the order of its lock."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.errors import AlreadyExists, NotFound
from services.outbox.log import service as log
from services.outbox.log.service import Start
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_readers import (
    FEED,
    Noted,
    Remarked,
    lock,
    make_consumer,
    note,
    read_all,
    read_once,
    take_transaction_id,
    told,
)
from tests.concurrency.ticks import damage


@pytest.fixture
async def read_log(database: Database) -> Database:
    """A database whose log has one consumer, which has read nothing."""
    await make_consumer(database)
    return database


async def test_writers_that_commit_out_of_the_order_of_their_positions_are_read_in_the_order_of_commits(
    read_log: Database,
) -> None:
    async with UnitOfWork(read_log.write) as slow, UnitOfWork(read_log.write) as slower:
        for uow, name in ((slower, "slower"), (slow, "slow")):
            uow.record(Noted(name=name))
            # Written with its position, but not committed.
            await uow.check()
        await note(read_log, Noted(name="quick"))
        assert await read_all(read_log) == ["quick 0"]
        await slow.commit()
        assert await read_all(read_log) == ["slow 0"]
        await slower.commit()
        assert await read_all(read_log) == ["slower 0"]
    assert await read_all(read_log) == []


@pytest.mark.parametrize("reads_in_between", [False, True])
async def test_an_older_transaction_that_had_to_wait_for_the_lock_comes_after_the_younger_one_that_had_it(
    read_log: Database, reads_in_between: bool
) -> None:
    found: list[str] = []
    async with UnitOfWork(read_log.write) as older, UnitOfWork(read_log.write) as between:
        older_id = await take_transaction_id(older)
        # Another one in flight, so that no horizon lies between the two.
        await take_transaction_id(between)
        async with UnitOfWork(read_log.write) as younger:
            await lock(younger, "a")
            assert await take_transaction_id(younger) > older_id
            waiting = asyncio.create_task(lock(older, "a"))
            younger.record(Noted(name="a", number=1))
            await younger.commit()
        await waiting
        if reads_in_between:
            found += await read_all(read_log)
        older.record(Noted(name="a", number=2))
        await older.commit()
        found += await read_all(read_log)
    assert found == ["a 1", "a 2"]


async def test_a_writer_that_does_not_end_does_not_hold_up_the_events_of_others(read_log: Database) -> None:
    async with UnitOfWork(read_log.write) as endless:
        endless.record(Noted(name="endless"))
        await endless.check()
        for number in range(5):
            await note(read_log, Noted(name="a", number=number))
            assert await read_all(read_log) == [f"a {number}"]
        await endless.rollback()
    assert await read_all(read_log) == []


async def test_a_consumer_also_reads_what_it_records_while_reading(read_log: Database) -> None:
    await note(read_log, Noted(name="a", number=1))
    async with UnitOfWork(read_log.write) as uow:
        own = await take_transaction_id(uow)
        # A younger transaction that has ended: in PostgreSQL's snapshot, the reader counts as ended.
        await note(read_log, Noted(name="a", number=2))
        batch = await log.read(uow, FEED, 10)
        assert [told(event) for event in batch.events] == ["a 1", "a 2"]
        uow.record(Noted(name="a", number=3))
        await log.advance(uow, batch)
        await uow.commit()
    async with read_log.engine.connect() as connection:
        written_by = text("SELECT transaction_id::text FROM events WHERE payload ->> 'number' = '3'")
        assert await connection.scalar(written_by) == str(own)
    assert await read_all(read_log) == ["a 3"]


async def test_a_consumer_that_starts_now_reads_what_its_creator_records(database: Database) -> None:
    await note(database, Noted(name="before"))
    async with UnitOfWork(database.write) as uow:
        await take_transaction_id(uow)
        await note(database, Noted(name="before"))
        await log.create(uow, FEED, Start.now)
        uow.record(Noted(name="own"))
        await uow.commit()
    await note(database, Noted(name="after"))
    assert await read_all(database) == ["own 0", "after 0"]


async def test_events_of_one_transaction_come_in_the_order_they_were_recorded(read_log: Database) -> None:
    await note(read_log, *(Noted(name="a", number=number) for number in range(300)))
    assert await read_all(read_log, 7) == [f"a {number}" for number in range(300)]


async def test_pages_of_one_look_are_not_mixed_with_what_commits_meanwhile(read_log: Database) -> None:
    async with UnitOfWork(read_log.write) as late:
        late.record(Noted(name="late"))
        await late.check()
        await note(read_log, *(Noted(name="a", number=number) for number in range(6)))
        first = await read_once(read_log, 4)
        assert first.more
        await late.commit()
        await note(read_log, Noted(name="b"))
    # Late has the lowest position of all, and is not lost behind the page; b has the highest, and has to wait.
    assert [told(event) for event in (await read_once(read_log, 4)).events] == ["a 4", "a 5"]
    assert await read_all(read_log, 1) == ["late 0", "b 0"]


async def test_types_that_are_not_asked_for_are_skipped(read_log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "POSITIONS_PER_READ", 10)
    await note(read_log, *(Noted(name="a", number=number) for number in range(45)), Remarked(name="b"))
    reads = []
    for _ in range(6):
        async with UnitOfWork(read_log.write) as uow:
            batch = await log.read(uow, FEED, 10, [Remarked.type])
            await log.advance(uow, batch)
            await uow.commit()
        reads.append((len(batch.events), batch.more))
    # A read looks at ten positions. A reader that stopped at an empty read would never reach the one it wants.
    assert reads == [(0, True)] * 4 + [(1, True), (0, False)]


async def test_a_read_without_a_commit_does_not_count(read_log: Database) -> None:
    await note(read_log, Noted(name="a"))
    async with UnitOfWork(read_log.write) as uow:
        batch = await log.read(uow, FEED, 10)
        await log.advance(uow, batch)
        assert len(batch.events) == 1
    assert await read_all(read_log) == ["a 0"]


async def test_a_reader_that_is_killed_between_read_and_commit_leaves_everything_to_the_next(
    read_log: Database,
) -> None:
    await note(read_log, *(Noted(name="a", number=number) for number in range(4)))
    await read_once(read_log, 2)
    async with UnitOfWork(read_log.write) as uow:
        batch = await log.read(uow, FEED, 10)
        assert [told(event) for event in batch.events] == ["a 2", "a 3"]
        await log.advance(uow, batch)
        pid = await (await uow.session.connection()).scalar(text("SELECT pg_backend_pid()"))
        async with read_log.engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            await uow.commit()
    assert await read_all(read_log) == ["a 2", "a 3"]


async def test_two_processes_with_one_name_exclude_each_other_without_waiting(read_log: Database) -> None:
    await note(read_log, Noted(name="a"))
    async with UnitOfWork(read_log.write) as first, UnitOfWork(read_log.write) as second:
        mine = await log.read(first, FEED, 10)
        assert len(mine.events) == 1
        async with asyncio.timeout(5):
            theirs = await log.read(second, FEED, 10)
        assert (theirs.events, theirs.more, theirs.next) == ((), False, None)
        await log.advance(second, theirs)
        await second.commit()
        await log.advance(first, mine)
        await first.commit()
    assert await read_all(read_log) == []


async def test_many_readers_of_one_consumer_take_effect_once_and_in_order(read_log: Database) -> None:
    async with read_log.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE taken (id bigint GENERATED ALWAYS AS IDENTITY, number int)"))

    async def reader() -> None:
        idle = 0
        while idle < 5:
            async with UnitOfWork(read_log.write) as uow:
                batch = await log.read(uow, FEED, 3)
                connection = await uow.session.connection()
                for event in batch.events:
                    statement = text("INSERT INTO taken (number) VALUES (:number)")
                    await connection.execute(statement, {"number": event.payload["number"]})
                await log.advance(uow, batch)
                await uow.commit()
            idle = 0 if batch.events else idle + 1
            await asyncio.sleep(0.01)

    async def writer() -> None:
        for number in range(60):
            await note(read_log, Noted(name="a", number=number))

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        for _ in range(4):
            group.create_task(reader())
    async with read_log.engine.connect() as connection:
        taken = list(await connection.scalars(text("SELECT number FROM taken ORDER BY id")))
    assert taken == list(range(60))


async def test_a_look_that_finds_nothing_writes_nothing(read_log: Database) -> None:
    await note(read_log, Noted(name="a"))
    assert await read_all(read_log) == ["a 0"]
    async with UnitOfWork(read_log.write) as uow:
        await log.advance(uow, await log.read(uow, FEED, 10))
        connection = await uow.session.connection()
        assert await connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text")) is None


async def test_consumers_are_independent_and_can_start_again(read_log: Database) -> None:
    await note(read_log, Noted(name="a"), Noted(name="b"))
    await make_consumer(read_log, "other")
    assert await read_all(read_log) == ["a 0", "b 0"]
    assert await read_all(read_log, consumer="other") == ["a 0", "b 0"]
    async with UnitOfWork(read_log.write) as uow:
        await log.reset(uow, "other", Start.beginning)
        await uow.commit()
    assert await read_all(read_log) == []
    assert await read_all(read_log, consumer="other") == ["a 0", "b 0"]
    await note(read_log, Noted(name="c"))
    async with UnitOfWork(read_log.write) as uow:
        await log.reset(uow, "other", Start.now)
        await log.delete(uow, FEED)
        await uow.commit()
    assert await read_all(read_log, consumer="other") == []
    with pytest.raises(NotFound, match="'feed'"):
        await read_all(read_log)


async def test_names_that_are_taken_or_unknown_are_refused(read_log: Database) -> None:
    async with UnitOfWork(read_log.write) as uow:
        with pytest.raises(AlreadyExists, match="'feed'"):
            await log.create(uow, FEED)
        with pytest.raises(NotFound, match="'nobody'"):
            await log.reset(uow, "nobody", Start.now)
        with pytest.raises(NotFound, match="'nobody'"):
            await log.delete(uow, "nobody")


async def test_operators_see_how_far_behind_each_consumer_is(
    read_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_COUNTED", 4)
    await make_consumer(read_log, "idle")
    await note(read_log, *(Noted(name="a", number=number) for number in range(3)))
    await damage(read_log, "UPDATE events SET occurred_at = occurred_at - interval '1 hour'")
    await read_once(read_log, 1)
    await note(read_log, Noted(name="b"), Noted(name="b"))
    async with UnitOfWork(read_log.write) as uow:
        feed, idle = await log.lags(uow)
    assert (feed.name, feed.events, idle.name, idle.events) == ("feed", 4, "idle", 4)
    assert 3600 <= feed.seconds < 3700
    await read_all(read_log)
    async with UnitOfWork(read_log.write) as uow:
        feed, _ = await log.lags(uow)
    assert (feed.events, feed.seconds) == (0, 0.0)
