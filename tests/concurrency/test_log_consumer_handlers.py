"""Handlers of consumers that fail, take too long, commit or do not end: it is their consumer's trouble alone."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.consumers import Consumer, claim, run_batch
from services.outbox.log import service as log
from services.outbox.log.schemas import LoggedEvent
from services.outbox.subscription import HandlerBroken
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_consumers import (
    LEASE,
    change,
    follower,
    following,
    lag,
    named,
    numbers,
    until,
    until_caught_up,
    until_state,
    what,
)
from tests.concurrency.log_readers import FEED, Telling, never, note
from tests.concurrency.ticks import rows
from tests.logs import capture_logs
from worker.follower import Follower

pytestmark = pytest.mark.usefixtures("quick_consumers")


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
