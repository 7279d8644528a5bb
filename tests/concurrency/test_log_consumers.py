"""Consumers that workers run: one at a time, each event once, whatever fails, hangs or comes back late."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import worker.follower
from services.database import Database
from services.outbox.consumers import Consumer, check_consumers, claim, run_batch
from services.outbox.log import service as log
from services.outbox.log.schemas import LoggedEvent
from services.outbox.log.service import Start
from services.outbox.sink import run
from services.outbox.subscription import TimeLimitTooLong
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
from tests.concurrency.log_readers import FEED, Noted, Remarked, Telling, note, read_once
from tests.concurrency.ticks import rows
from tests.logs import capture_logs
from worker.follower import Follower

pytestmark = pytest.mark.usefixtures("quick_consumers")


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
