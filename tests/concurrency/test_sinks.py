"""A consumer whose place is in another database: each event once, whatever is killed, restored or dropped."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.errors import Conflict
from services.fields import new_id
from services.orders.events import OrderConfirmed
from services.outbox.consumers import LeaseLost
from services.outbox.log import service as log
from services.outbox.log.service import Start
from services.outbox.sink import RebuildNeeded, SinkUnusable
from services.reports import service as reports
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.reporting import (
    Reporter,
    Shop,
    confirmed,
    lag,
    rows,
    sink_of,
)
from tests.roles import OWNER, as_role
from worker.jobs.retention import forget_events

OLD = datetime(2021, 3, 15, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    return settings.model_copy(update={"analytics_url": analytics_url})


async def test_each_event_counts_once_however_small_the_batches(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm(7)
    await reporter.catch_up(2)
    assert await confirmed(reporter.analytics) == 7
    await shop.confirm(2)
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 9
    assert await rows(
        reporter.analytics.engine,
        "SELECT orders, pieces, amount FROM report_days WHERE seller_id = 0",
    ) == [(9, 27, Decimal("270.00"))]
    assert (await lag(reporter.database)).events == 0
    before = await sink_of(reporter.database)
    assert not await reporter.step()
    assert await sink_of(reporter.database) == before, "an idle look writes nothing"


async def test_a_transaction_that_commits_late_is_counted(shop: Shop, reporter: Reporter) -> None:
    other = await Shop(shop.database).open()
    async with UnitOfWork(shop.database.write) as late:
        late.record(OrderConfirmed(order_id=other.order_id, total=Decimal(30)))
        await late.flush()
        await shop.confirm(2)
        await reporter.catch_up()
        assert await confirmed(reporter.analytics) == 2
        await late.commit()
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 3


class Killed(BaseException):
    """The process ends here."""


KILLS = [
    "before the read",
    "after the read",
    "after the place was moved",
    "after the effects",
    "by the server",
]


@pytest.mark.parametrize("when", KILLS)
async def test_a_batch_that_ends_anywhere_takes_effect_once(
    shop: Shop, reporter: Reporter, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    await shop.confirm(3)
    await reporter.step(1)
    work, consumer = type(reporter.analytics.open()), reporter.consumer

    async def die(*_: Any, **__: Any) -> Any:
        raise Killed

    async def lose(*arguments: Any) -> None:
        await consumer.apply(*arguments)
        (pid,) = await (await arguments[0].session.connection()).execute(text("SELECT pg_backend_pid()"))
        await rows(reporter.analytics.engine, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid[0])

    with monkeypatch.context() as patch:
        match when:
            case "before the read":
                patch.setattr(UnitOfWork, "commit", die)
            case "after the read":
                patch.setattr(work, "move", die)
            case "after the place was moved":
                reporter.consumer = Reporter(reporter.database, reporter.analytics, apply=die).consumer
            case "after the effects":
                patch.setattr(work, "commit", die)
            case "by the server":
                reporter.consumer = Reporter(reporter.database, reporter.analytics, apply=lose).consumer
        with pytest.raises((Killed, DBAPIError)):
            await reporter.step(2)
    reporter.consumer = consumer
    assert await confirmed(reporter.analytics) == 1
    # Its successor, which takes the lease over.
    await rows(reporter.database.engine, "UPDATE log_consumers SET lease_owner = NULL, lease_until = NULL")
    await Reporter(reporter.database, reporter.analytics).catch_up(2)
    assert await confirmed(reporter.analytics) == 3


async def test_two_workers_at_once_count_each_event_once(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm(40)
    other = Reporter(reporter.database, reporter.analytics)
    await reporter.claim()
    # Both believe that they have the lease.
    other.owner, other.lease = reporter.owner, reporter.lease

    async def work(one: Reporter) -> int:
        lost = 0
        for _ in range(60):
            try:
                await one.step(3)
            except LeaseLost:
                lost += 1
        return lost

    lost = await asyncio.gather(work(reporter), work(other))
    assert sum(lost) > 0, "they were never in each other's way"
    await reporter.catch_up()
    assert await confirmed(reporter.analytics) == 40


@pytest.mark.parametrize("news", [True, False])
async def test_a_worker_that_has_lost_the_lease_reads_and_stores_nothing(
    shop: Shop, reporter: Reporter, news: bool
) -> None:
    await shop.confirm(1)
    await reporter.catch_up()
    if news:
        await shop.confirm(2)
    async with reporter.open() as uow:
        await log.pause(uow, reports.CONSUMER, "an operator")
        await uow.commit()
    with pytest.raises(LeaseLost):
        await reporter.step()
    assert await confirmed(reporter.analytics) == 1


async def test_retention_waits_for_what_the_reports_have_stored_and_not_for_what_they_have_read(
    shop: Shop, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = datetime(2021, 5, 1, tzinfo=UTC)
    await reporter.claim()
    await shop.confirm_on(OLD)

    async def die(*_: Any) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(reporter.analytics.open()), "move", die)
        with pytest.raises(Killed):
            await reporter.step()
    assert await forget_events(shop.database.engine, before, None) == []
    await reporter.step()
    assert await confirmed(reporter.analytics) == 1
    # The primary does not know it yet.
    assert await forget_events(shop.database.engine, before, None) == []
    await reporter.step()
    assert await forget_events(shop.database.engine, before, None) == ["events_2021_03"]


async def test_the_place_cannot_be_reset_in_the_primary_alone(shop: Shop, reporter: Reporter) -> None:
    await shop.confirm(1)
    await reporter.catch_up()
    async with reporter.open() as uow:
        with pytest.raises(Conflict, match="rebuild what the consumer writes"):
            await log.reset(uow, reports.CONSUMER, Start.beginning)
        await log.delete(uow, reports.CONSUMER)
        await uow.commit()
    # It is created again, as another series.
    reporter.lease = None
    with pytest.raises(RebuildNeeded):
        await reporter.step()


async def test_tables_that_are_missing_or_old_are_named_with_the_command(
    shop: Shop, reporter: Reporter, analytics_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("services.analytics.revisions", lambda _: ("0001", "0002"))
        with pytest.raises(SinkUnusable, match="at revision 0001, but this release needs 0002: run `waybill migrate"):
            await reporter.step()
    with psycopg.connect(as_role(OWNER, analytics_url)) as owner:
        owner.execute("DROP TABLE alembic_version")
    with pytest.raises(SinkUnusable, match="has no tables: run `waybill migrate --database analytics`"):
        await reporter.step()


async def test_events_that_come_to_nothing_are_passed(shop: Shop, reporter: Reporter) -> None:
    async with UnitOfWork(shop.database.write) as uow:
        uow.record(OrderConfirmed(order_id=new_id(), total=Decimal(1)))
        await uow.commit()
    await shop.confirm(1)
    await reporter.catch_up(1)
    assert await confirmed(reporter.analytics) == 1
