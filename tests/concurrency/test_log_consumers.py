"""Consumers that workers run: one at a time, each event once, whatever fails, hangs or comes back late."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import worker.follower
from services.database import Database
from services.outbox.consumers import Consumer, check_consumers, claim, run_batch
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag, LoggedEvent
from services.outbox.log.service import Start
from services.outbox.sink import run
from services.outbox.subscription import HandlerBroken, TimeLimitTooLong
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_readers import FEED, Noted, Remarked, Telling, never, note, read_once
from tests.concurrency.ticks import rows
from tests.logs import capture_logs
from worker.follower import Follower

LEASE = 60.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.follower, "_IDLE", 0.02)
    monkeypatch.setattr(worker.follower, "_CLAIM", 0.05)


@pytest.fixture
async def told_log(database: Database) -> Database:
    """A database in which handlers note what they were given."""
    await rows(database, "CREATE TABLE told (id bigint GENERATED ALWAYS AS IDENTITY, what text, by text)")
    return database


def follower(database: Database, *consumers: Consumer[UnitOfWork], lease: float = LEASE) -> Follower:
    return Follower(lambda: UnitOfWork(database.write), consumers, uuid4(), lease=lease)


@asynccontextmanager
async def following(database: Database, *consumers: Consumer[UnitOfWork], lease: float = LEASE) -> AsyncIterator[None]:
    """Run the consumers, as one worker does."""
    one = follower(database, *consumers, lease=lease)
    one.start()
    try:
        yield
        for task in one.tasks:
            assert not task.done(), task.exception()
    finally:
        await one.stop(5)


async def what(database: Database) -> list[str]:
    return await rows(database, "SELECT what FROM told ORDER BY id")


async def until(database: Database, expected: list[str]) -> None:
    """Wait until exactly this was told."""
    for _ in range(200):
        if len(await what(database)) >= len(expected):
            break
        await asyncio.sleep(0.05)
    assert await what(database) == expected


async def lag(database: Database, name: str = FEED) -> Lag:
    async with UnitOfWork(database.write) as uow:
        return next(one for one in await log.lags(uow) if one.name == name)


async def until_state(database: Database, state: str, name: str = FEED) -> Lag:
    for _ in range(200):
        async with UnitOfWork(database.write) as uow:
            found = [one for one in await log.lags(uow) if one.name == name]
        if found and found[0].state == state:
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found} instead of {state}")


async def change(database: Database, do: Callable[[UnitOfWork], Any]) -> None:
    async with UnitOfWork(database.write) as uow:
        await do(uow)
        await uow.commit()


def numbers(first: int, last: int, name: str = "a") -> list[Noted]:
    return [Noted(name=name, number=number) for number in range(first, last)]


def named(first: int, last: int, name: str = "a") -> list[str]:
    return [f"{name} {number}" for number in range(first, last)]


async def test_a_consumer_gets_every_event_in_order_and_continues_where_it_stopped(told_log: Database) -> None:
    await note(told_log, *numbers(0, 7))
    consumer = Consumer(FEED, Telling(), batch=3)
    async with following(told_log, consumer):
        await until(told_log, named(0, 7))
        await note(told_log, *numbers(7, 9))
        await until(told_log, named(0, 9))
        assert (await lag(told_log)).state == "running"
    assert (await lag(told_log)).state == "waiting"
    await note(told_log, *numbers(9, 10))
    async with following(told_log, consumer):
        await until(told_log, named(0, 10))


async def test_a_consumer_starts_now_or_at_the_beginning_and_gets_only_its_types(told_log: Database) -> None:
    await note(told_log, Noted(name="old"), Remarked(name="old", number=1))
    async with following(
        told_log, Consumer("new", Telling(), start=Start.now), Consumer("remarks", Telling(), types=[Remarked])
    ):
        await until(told_log, ["old 1"])
        await until_state(told_log, "running", "new")
        await note(told_log, Noted(name="late"))
        await until(told_log, ["old 1", "late 0"])


async def test_a_transaction_that_commits_late_is_not_skipped(told_log: Database) -> None:
    async with following(told_log, Consumer(FEED, Telling())), UnitOfWork(told_log.write) as late:
        late.record(Noted(name="late"))
        await late.flush()
        await note(told_log, *numbers(0, 2))
        await until(told_log, named(0, 2))
        await late.commit()
        await until(told_log, [*named(0, 2), "late 0"])


async def test_several_workers_run_a_consumer_one_at_a_time(told_log: Database) -> None:
    handlers = [Telling(name) for name in "abc"]
    async with (
        following(told_log, Consumer(FEED, handlers[0], batch=2)),
        following(told_log, Consumer(FEED, handlers[1], batch=2)),
        following(told_log, Consumer(FEED, handlers[2], batch=2)),
    ):
        for number in range(30):
            await note(told_log, *numbers(number, number + 1))
        await until(told_log, named(0, 30))
    assert len(await rows(told_log, "SELECT DISTINCT by FROM told")) == 1, "the lease stays with one of them"


async def test_a_worker_that_was_suspended_for_longer_than_its_lease_cannot_commit(told_log: Database) -> None:
    await note(told_log, *numbers(0, 3))
    slow, quick = Telling("slow", waits=True), Telling("quick")
    with capture_logs() as logged:
        # Its lease expires while the handler waits, as if the process had been suspended.
        async with following(told_log, Consumer(FEED, slow), lease=0.5):
            await asyncio.wait_for(slow.entered.wait(), 5)
            async with following(told_log, Consumer(FEED, quick)):
                await until(told_log, named(0, 3))
                slow.may_go.set()
                await asyncio.sleep(0.3)
                await note(told_log, *numbers(3, 5))
                await until(told_log, named(0, 5))
    assert await rows(told_log, "SELECT DISTINCT by FROM told") == ["quick"]
    assert any("is lost" in str(line["event"]) for line in logged)


@pytest.mark.parametrize("change_it", ["pause", "reset", "delete", "read"])
async def test_a_change_by_an_operator_fences_off_the_running_batch(told_log: Database, change_it: str) -> None:
    await note(told_log, *numbers(0, 3))
    consumer = Consumer(FEED, Telling())
    async with UnitOfWork(told_log.write) as uow:
        lease = await claim(uow, consumer, uuid4(), LEASE)
        await uow.commit()
    assert lease is not None
    async with UnitOfWork(told_log.write) as running:
        batch = await log.read_leased(running, FEED, lease, 10)
        assert batch is not None
        own = await running.log.own()
        match change_it:
            case "pause":
                await change(told_log, lambda uow: log.pause(uow, FEED, "an operator"))
            case "reset":
                await change(told_log, lambda uow: log.reset(uow, FEED, Start.now))
            case "delete":
                await change(told_log, lambda uow: log.delete(uow, FEED))
                # The next worker creates it again, and gets the same token.
                await change(told_log, lambda uow: claim(uow, consumer, uuid4(), LEASE))
            case "read":
                await read_once(told_log)
        assert not await log.advance_leased(running, batch, lease, own)


async def test_an_event_that_fails_stops_its_consumer_and_no_other(
    told_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await note(told_log, *numbers(0, 20))
    poisoned = Telling("poisoned", poison=lambda event: event.payload["number"] == 13)
    with capture_logs() as logged:
        async with following(told_log, Consumer(FEED, poisoned, batch=20), Consumer("other", Telling("other"))):
            failing = await until_state(told_log, "failing")
            assert "poison" in str(failing.error)
            assert failing.retry_at is not None
            # What came before it took effect once; the batch was tried in ever smaller parts.
            assert await rows(told_log, "SELECT what FROM told WHERE by = 'poisoned' ORDER BY id") == named(0, 13)
            await note(told_log, *numbers(20, 22))
            for _ in range(100):
                if await rows(told_log, "SELECT count(*) FROM told WHERE by = 'other'") == [22]:
                    break
                await asyncio.sleep(0.05)
            assert await rows(told_log, "SELECT what FROM told WHERE by = 'other' ORDER BY id") == named(0, 22)
            await rows(told_log, "UPDATE log_consumers SET failed_in_a_row = 2 WHERE name = 'feed'")
            assert "failed 2 times in a row: ValueError" in str((await lag(told_log)).complaint)
            # The handler is mended; an operator does not want to wait.
            poisoned.poison = never
            await change(told_log, lambda uow: log.resume(uow, FEED))
            for _ in range(100):
                if await rows(told_log, "SELECT count(*) FROM told WHERE by = 'poisoned'") == [22]:
                    break
                await asyncio.sleep(0.05)
            assert (await lag(told_log)).failed_in_a_row == 0
    assert await rows(told_log, "SELECT what FROM told WHERE by = 'poisoned' ORDER BY id") == named(0, 22)
    assert len([line for line in logged if "failed on a batch" in str(line["event"])]) == 1, "it is rate-limited"


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, GeneratorExit])
async def test_a_handler_that_takes_too_long_or_raises_no_exception_fails_its_consumer_alone(
    told_log: Database, error: type[BaseException]
) -> None:
    async def leaving(_: UnitOfWork, __: Sequence[LoggedEvent]) -> None:
        raise error

    await note(told_log, *numbers(0, 1))
    slow = Consumer("slow", Telling(waits=True), batch=1, time_limit=0.2)
    async with following(told_log, slow, Consumer("leaving", leaving, batch=1), Consumer(FEED, Telling())):
        assert "did not end within 0.2 s" in str((await until_state(told_log, "failing", "slow")).error)
        assert error.__name__ in str((await until_state(told_log, "failing", "leaving")).error)
        await until(told_log, named(0, 1))


async def tell(uow: UnitOfWork) -> None:
    connection = await uow.session.connection()
    await connection.execute(text("INSERT INTO told (what, by) VALUES ('x', 'a')"))


@pytest.mark.parametrize("where", ["handler", "on_start"])
async def test_a_handler_that_commits_fails_its_consumer_and_nothing_takes_effect(
    told_log: Database, where: str
) -> None:
    async def committing(uow: UnitOfWork, *_: Sequence[LoggedEvent]) -> None:
        await tell(uow)
        await uow.commit()

    consumer = Consumer(FEED, committing, batch=4)
    if where == "on_start":
        consumer = Consumer(FEED, Telling(), batch=4, on_start=committing)
    await note(told_log, *numbers(0, 9))
    async with following(told_log, consumer):
        assert "a handler cannot end its transaction" in str((await until_state(told_log, "failing")).error)
    assert (await what(told_log), (await lag(told_log)).events) == ([], 9)


async def test_a_handler_that_commits_at_the_driver_is_found_out(told_log: Database) -> None:
    async def committing(uow: UnitOfWork, _: Sequence[LoggedEvent]) -> None:
        connection = await uow.session.connection()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.fetchrow("COMMIT")

    await note(told_log, *numbers(0, 1))
    consumer = Consumer(FEED, committing)
    async with UnitOfWork(told_log.write) as uow:
        lease = await claim(uow, consumer, uuid4(), LEASE)
        assert lease is not None
        await uow.commit()
        with pytest.raises((HandlerBroken, RuntimeError), match=r"ended the transaction|transaction has ended"):
            await run_batch(uow, consumer, lease, 10)
    assert (await lag(told_log)).events == 1


class SlowCommit(UnitOfWork):
    """A unit of work whose commit takes longer than a batch may; only the first one that has told something."""

    slow = True

    async def _commit(self) -> None:
        if SlowCommit.slow and await (await self.session.connection()).scalar(text("SELECT count(*) FROM told")):
            SlowCommit.slow = False
            await asyncio.sleep(0.9)
        await super()._commit()


async def test_a_batch_whose_commit_takes_effect_after_it_was_given_up_is_not_handled_twice(
    told_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowCommit, "slow", True)
    await note(told_log, *numbers(0, 4))
    handler = Telling()
    consumer = Consumer(FEED, handler, batch=4, time_limit=0.6)
    one = Follower(lambda: SlowCommit(told_log.write), [consumer], uuid4())
    one.start()
    try:
        await until(told_log, named(0, 4))
        await until_caught_up(told_log)
        await note(told_log, *numbers(4, 6))
        # Long before the lease expires.
        await until(told_log, named(0, 6))
    finally:
        await one.stop(5)
    assert handler.sizes[0] == 4
    assert len(handler.sizes) > 2, "it was tried again while the commit was running"


async def test_a_connection_that_is_lost_after_the_handler_leaves_neither_effect_nor_place(told_log: Database) -> None:
    await note(told_log, *numbers(0, 3))
    consumer = Consumer(FEED, Telling())
    async with UnitOfWork(told_log.write) as uow:
        lease = await claim(uow, consumer, uuid4(), LEASE)
        assert lease is not None
        await uow.commit()
        await run_batch(uow, consumer, lease, 10)
        pid = await (await uow.session.connection()).scalar(text("SELECT pg_backend_pid()"))
        assert await rows(told_log, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid) == [True]
        with pytest.raises(DBAPIError):
            await uow.commit()
    assert (await what(told_log), (await lag(told_log)).events) == ([], 3)
    async with UnitOfWork(told_log.write) as uow:
        await run_batch(uow, consumer, lease, 10)
        await uow.commit()
    assert (await what(told_log), (await lag(told_log)).events) == (named(0, 3), 0)


async def test_a_consumer_that_reads_from_the_beginning_again_starts_over(told_log: Database) -> None:
    async def forget(uow: UnitOfWork) -> None:
        await (await uow.session.connection()).execute(text("DELETE FROM told"))

    await note(told_log, *numbers(0, 5))
    consumer = Consumer(FEED, Telling(), batch=2, on_start=forget)
    async with following(told_log, consumer):
        await until(told_log, named(0, 5))
        await change(told_log, lambda uow: log.reset(uow, FEED, Start.beginning))
        await until_caught_up(told_log)
        assert await what(told_log) == named(0, 5)


async def until_caught_up(database: Database) -> None:
    for _ in range(200):
        if not (await lag(database)).events:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not catch up")


async def test_a_paused_consumer_waits_until_it_is_resumed(told_log: Database) -> None:
    async with following(told_log, Consumer(FEED, Telling())):
        await until_state(told_log, "running")
        await change(told_log, lambda uow: log.pause(uow, FEED, "an operator"))
        await note(told_log, *numbers(0, 2))
        paused = await until_state(told_log, "paused")
        assert (paused.events, paused.paused_by, paused.complaint) == (2, "an operator", None)
        await change(told_log, lambda uow: log.resume(uow, FEED))
        await until(told_log, named(0, 2))


def test_limits_and_names_that_cannot_work_are_refused() -> None:
    with pytest.raises(TimeLimitTooLong, match=r"'feed' may take 31 s"):
        check_consumers([Consumer(FEED, Telling(), time_limit=31)], 60, 40)
    with pytest.raises(TimeLimitTooLong, match="WAYBILL_DATABASE_IDLE"):
        check_consumers([Consumer(FEED, Telling(), time_limit=20)], 60, 20)
    with pytest.raises(ValueError, match="same name"):
        check_consumers([Consumer(FEED, Telling()), Consumer(FEED, Telling())], 60, 40)


async def test_a_handler_that_does_not_end_when_it_is_cancelled_is_a_sign_for_the_guard(told_log: Database) -> None:
    may_end = asyncio.Event()

    async def stubborn(_: UnitOfWork, __: Sequence[LoggedEvent]) -> None:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()

    await note(told_log, *numbers(0, 1))
    one = follower(told_log, Consumer(FEED, stubborn, batch=1, time_limit=0.2), Consumer("other", Telling()))
    one.start()
    await until(told_log, named(0, 1))
    for _ in range(100):
        if signs := one.signs():
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    assert one.signs() == signs
    assert list(signs) == ["log consumer feed"]
    # It still has its lease, so that what it did is not lost.
    may_end.set()
    await until_caught_up(told_log)
    assert one.signs() == {}
    await one.stop(5)


async def test_a_worker_that_stops_gives_its_consumers_back(told_log: Database) -> None:
    await note(told_log, *numbers(0, 1))
    handler = Telling(waits=True)
    one = follower(told_log, Consumer(FEED, handler))
    one.start()
    await asyncio.wait_for(handler.entered.wait(), 5)
    # Its batch does not end in time: it is rolled back.
    await one.stop(0.1)
    assert await rows(told_log, "SELECT lease_owner IS NULL FROM log_consumers") == [True]
    assert await what(told_log) == []


async def test_an_idle_consumer_looks_less_and_less_often_until_its_worker_has_processed_something(
    told_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = processed = 0

    async def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return await run(*arguments)

    monkeypatch.setattr(worker.follower, "run", counted)
    monkeypatch.setattr(worker.follower, "_LONGEST_IDLE", 10_000)
    idle = Follower(
        lambda: UnitOfWork(told_log.write), [Consumer(FEED, Telling())], uuid4(), processed=lambda: processed
    )
    idle.start()
    try:
        await asyncio.sleep(1.5)
        # Without the growing wait, it would be some fifty looks.
        assert 1 <= looks < 10
        await note(told_log, *numbers(0, 2))
        processed = 1
        await until(told_log, named(0, 2))
    finally:
        await idle.stop(1.0)


async def test_a_consumer_that_keeps_up_rests_so_that_what_arrives_meanwhile_is_read_together(
    told_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.follower, "_IDLE", 2.0)
    batches: list[int] = []

    async def another(_: UnitOfWork, events: Sequence[LoggedEvent]) -> None:
        """Each batch finds that something has arrived since the one before."""
        batches.append(len(events))
        await note(told_log, *numbers(0, 1))

    await note(told_log, *numbers(0, 1))
    async with following(told_log, Consumer(FEED, another)):
        await asyncio.sleep(1.2)
    # One at the beginning, and one every half second.
    assert 1 <= len(batches) <= 4
