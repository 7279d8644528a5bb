"""A consumer whose place is in another database, after a rebuild and after one of the databases was restored."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from services.outbox import sink
from services.outbox.consumers import LeaseLost
from services.outbox.log import service as log
from services.outbox.sink import RebuildNeeded
from services.reports import service as reports
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import damage
from tests.reporting import (
    Reporter,
    Shop,
    confirmed,
    content,
    lag,
    rebuild,
    restore,
    rows,
    sink_of,
    state,
)
from worker.jobs.retention import forget_events

OLD = datetime(2021, 3, 15, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    return settings.model_copy(update={"analytics_url": analytics_url})


@pytest.mark.parametrize("limit", [1, 2, 5000])
async def test_a_rebuild_gives_what_was_counted_as_it_happened(shop: Shop, reporter: Reporter, limit: int) -> None:
    for number in range(1, 4):
        await shop.confirm(number)
        await reporter.catch_up(2)
    async with UnitOfWork(shop.database.write) as uow:
        uow.record(shop.placed())
        await uow.commit()
    await reporter.catch_up()
    before = await content(reporter.analytics)
    assert [len(found) for found in before.values()] == [10, 3]
    await rebuild(reporter)
    assert await confirmed(reporter.analytics) == 0
    await reporter.catch_up(limit)
    assert await content(reporter.analytics) == before


async def test_a_rebuild_keeps_the_days_that_the_log_no_longer_holds(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm_on(OLD)
    await shop.confirm(2)
    await reporter.catch_up()
    before = await content(reporter.analytics)
    assert await forget_events(shop.database.engine, datetime(2021, 5, 1, tzinfo=UTC), None) == ["events_2021_03"]
    assert await rebuild(reporter) == OLD.date()
    await reporter.catch_up()
    assert await content(reporter.analytics) == before


async def test_a_rebuild_that_was_killed_between_the_two_databases_is_refused_until_it_is_repeated(
    shop: Shop, reporter: Reporter
) -> None:
    await shop.confirm(2)
    await reporter.catch_up()
    async with reporter.open() as uow:
        _, reporter.lease, _ = await log.restart_sink(uow, reports.CONSUMER, reporter.owner, 60)
        await uow.commit()
    with pytest.raises(RebuildNeeded, match="run `waybill reports rebuild`"):
        await reporter.step()
    await rebuild(reporter)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 2


async def test_a_batch_that_began_before_a_rebuild_is_not_counted_by_it(
    shop: Shop, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.confirm(2)
    await reporter.step(1)
    late = Reporter(reporter.database, reporter.analytics)
    late.lease, late.owner = reporter.lease, reporter.owner
    move = type(reporter.analytics.open()).move

    async def move_late(*arguments: Any) -> bool:
        monkeypatch.undo()
        await rebuild(reporter)
        return await move(*arguments)

    monkeypatch.setattr(type(reporter.analytics.open()), "move", move_late)
    with pytest.raises(LeaseLost):
        await late.step(1)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 2


async def test_reports_that_were_restored_to_an_earlier_state_catch_up(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm(2)
    await reporter.step(1)
    backup = await state(reporter.analytics)
    await reporter.catch_up()
    await shop.confirm(3)
    await reporter.catch_up()
    nothing: dict[str, list[Any]] = {table: [] for table in backup}
    for earlier in (backup, nothing):
        await restore(reporter.analytics, earlier)
        await shop.confirm(1)
        await reporter.step(1)
        # The log keeps what they need again.
        assert (await lag(reporter.database)).events > 1
        await reporter.catch_up(2)
    assert await confirmed(reporter.analytics) == 7
    caught_up = await content(reporter.analytics)
    await rebuild(reporter)
    await reporter.catch_up()
    assert await content(reporter.analytics) == caught_up


async def test_reports_that_were_restored_to_before_dropped_events_are_refused_and_rebuilt(
    shop: Shop, reporter: Reporter
) -> None:
    await shop.confirm_on(OLD)
    empty = await state(reporter.analytics)
    await reporter.step(1)
    backup = await state(reporter.analytics)
    await shop.confirm(2)
    await reporter.catch_up()
    assert await forget_events(shop.database.engine, datetime(2021, 5, 1, tzinfo=UTC), None) == ["events_2021_03"]
    await shop.confirm()
    # It has read what was dropped.
    await restore(reporter.analytics, backup)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 4
    await restore(reporter.analytics, empty)
    for _ in range(2):
        with pytest.raises(RebuildNeeded, match="the log has dropped events"):
            await reporter.step()
    await rebuild(reporter)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 3


@pytest.mark.parametrize("moved_on", [False, True])
async def test_a_primary_that_was_restored_to_an_earlier_state_is_found(
    shop: Shop, reporter: Reporter, moved_on: bool
) -> None:
    await shop.confirm(2)
    await reporter.catch_up()
    reads, stored, seen, reading, position, until = await sink_of(reporter.database)
    await shop.confirm(2)
    await reporter.catch_up()
    # What a restore brings back; the events of the lost time are gone, and others have their transaction ids.
    await damage(reporter.database, "DELETE FROM events WHERE position > (SELECT min(position) + 1 FROM events)")
    await rows(
        reporter.database.engine, "UPDATE log_sinks SET reads = :reads, stored = :stored", reads=reads, stored=stored
    )
    await rows(
        reporter.database.engine,
        "UPDATE log_consumers"
        " SET seen = CAST(CAST(:seen AS text) AS pg_snapshot), reading = NULL, position = :position",
        seen=seen,
        position=position,
    )
    assert (reading, until) == (None, None)
    if moved_on:
        await shop.confirm(1)
    for _ in range(2):
        with pytest.raises(RebuildNeeded, match="restored or replaced"):
            await reporter.step()
    await rebuild(reporter)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 2 + int(moved_on)


async def test_a_read_that_a_failover_has_lost_is_found_even_if_another_one_has_its_number(
    shop: Shop, reporter: Reporter
) -> None:
    await shop.confirm(2)
    await reporter.catch_up()
    assert reporter.lease is not None
    before = await sink._place(reporter.consumer)
    assert before is not None
    reads, last_read = (await rows(reporter.database.engine, "SELECT reads, last_read FROM log_sinks"))[0]

    async def hand_out() -> Any:
        assert reporter.lease is not None
        async with reporter.open() as uow:
            read = await sink._hand_out(uow, reporter.consumer, reporter.lease, before, 10)
            await uow.commit()
        return read

    await shop.confirm(1)
    # One worker is suspended after its read, which the failover loses; another one reads, too.
    lost, found = await hand_out()
    undone = "UPDATE log_sinks SET reads = :reads, last_read = :last_read"
    await rows(reporter.database.engine, undone, reads=reads, last_read=last_read)
    other, _ = await hand_out()
    assert other.number == lost.number
    async with reporter.analytics.open() as work:
        assert await work.move(reports.CONSUMER, before, lost)
        await reporter.consumer.apply(work, found)
        await work.commit()
    async with reporter.analytics.open() as work:
        assert not await work.move(reports.CONSUMER, before, other)
    with pytest.raises(RebuildNeeded):
        await reporter.step()


async def test_reports_of_another_primary_are_refused(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm(2)
    await reporter.catch_up()
    await rows(reporter.database.engine, "UPDATE log_sinks SET series = :series", series=uuid4())
    with pytest.raises(RebuildNeeded):
        await reporter.step()
