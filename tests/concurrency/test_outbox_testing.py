"""The helpers for tests: recorded events are found or the failure explained, and an outbox is drained."""

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.policy import RetryPolicy
from services.outbox.testing import TooMuchWork, assert_recorded, drain
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, Tock, append, damage, effects, processor, rows

AT_ONCE = RetryPolicy(max_attempts=100, base=0.0, cap=0.0)


async def test_what_a_unit_of_work_recorded_is_found_before_and_after_it_is_written(database: Database) -> None:
    await append(database, Tick(name="committed"))
    async with UnitOfWork(database.write) as uow:
        uow.record(Tick(name="a", number=1))
        uow.record(Tick(name="a", number=2))
        assert await assert_recorded(uow, Tick, name="a") == Tick(name="a", number=2)
        await uow.check()
        assert uow.recorded == ()
        assert await assert_recorded(uow, Tick, number=1, aggregate="tick/a") == Tick(name="a", number=1)
        # From another transaction, or from none, but not from this one.
        with pytest.raises(AssertionError, match=r"test\.tick was not recorded with name='committed'"):
            await assert_recorded(uow, Tick, name="committed")
        with pytest.raises(AssertionError, match="name is 'committed', number is 0"):
            await assert_recorded(database, Tick, name="a", number=1)
        await uow.commit()
    assert await assert_recorded(database, Tick, name="a", number=1)
    assert await assert_recorded(database.write, Tick, name="committed") == Tick(name="committed")


async def test_types_are_told_apart_even_if_one_is_a_subclass_of_the_other(database: Database) -> None:
    await append(database, Tock(name="a"))
    async with UnitOfWork(database.write) as uow:
        uow.record(Tock(name="a"))
        for where in (database, uow):
            assert type(await assert_recorded(where, Tock)) is Tock
            with pytest.raises(AssertionError):
                await assert_recorded(where, Tick)


async def test_a_failing_assertion_says_what_was_recorded_instead_nearest_first(database: Database) -> None:
    await append(database, Tock(name="a"), Tick(name="b", number=3), Tick(name="a", number=3), *([Tock(name="c")] * 9))
    await damage(database, "UPDATE events SET payload = '{\"nam\": 1}' WHERE payload ->> 'name' = 'b'")
    with pytest.raises(AssertionError) as failed:
        await assert_recorded(database, Tick, name="a", number=4)
    lines = str(failed.value).splitlines()
    assert lines[:4] == [
        "test.tick was not recorded with name='a', number=4. Recorded instead, closest match first:",
        "  test.tick: number is 3",
        "  test.tick, which does not fit its model: {'nam': 1}",
        "  test.tock of tick/a: {'name': 'a', 'number': 0}",
    ]
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12


async def test_an_empty_log_is_reported(database: Database) -> None:
    with pytest.raises(AssertionError, match=r"^test\.tick was not recorded; nothing was recorded$"):
        await assert_recorded(database, Tick)


async def test_a_field_that_the_event_does_not_have_is_refused(database: Database) -> None:
    await append(database, Tick(name="a"))
    with pytest.raises(TypeError, match="Tick has no nmae; it has aggregate, name, number"):
        await assert_recorded(database, Tick, nmae="a")


async def test_draining_processes_all_that_is_due_and_leaves_what_waits(ticking: Database) -> None:
    await append(ticking, *(Tick(name="a", number=number) for number in range(25)), Tick(name="b"), Tick(name="b"))
    poisoned = TickHandler(lambda claimed: claimed.event.name == "b")
    outcomes = await drain(processor(ticking, poisoned, retry=LATER, batch_size=10))
    assert sum(outcome.processed for outcome in outcomes) == 25
    assert len(await effects(ticking)) == 25
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at > now()") == [2]
    assert await drain(processor(ticking)) == []


async def test_draining_continues_with_what_is_due_again(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    failures = iter([True, True, False])
    await drain(processor(ticking, TickHandler(lambda _: next(failures)), retry=AT_ONCE))
    assert await effects(ticking) == [("a", 0)]


async def test_draining_is_bounded(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    with pytest.raises(TooMuchWork, match="after 5 transactions"):
        await drain(processor(ticking, TickHandler(lambda _: True), retry=AT_ONCE), transactions=5)
    async with ticking.engine.connect() as connection:
        assert await connection.scalar(text("SELECT attempts FROM outbox")) == 5
