"""A consumer whose place is in another database: each event once, whatever is killed, restored or dropped."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

from services.analytics import Analytics
from services.database import Database
from services.errors import Conflict
from services.fields import new_id
from services.orders.events import OrderConfirmed, OrderPlaced
from services.outbox import sink
from services.outbox.consumers import LeaseLost
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag
from services.outbox.log.service import Start
from services.outbox.retention.repository import add_partitions
from services.outbox.sink import RebuildNeeded, SinkUnusable
from services.reports import service as reports
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.factories import make_order, make_product, make_user
from tests.reporting import Reporter, analytics_of, content, rows
from worker.jobs.retention import forget_events

CONFIRMED = "SELECT coalesce(sum(orders), 0)::int FROM report_days WHERE seller_id = 0 AND type = 'order.confirmed'"
OLD = datetime(2021, 3, 15, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    return settings.model_copy(update={"analytics_url": analytics_url})


@pytest.fixture
async def analytics(settings: Settings) -> AsyncIterator[Analytics]:
    async with analytics_of(settings) as opened:
        yield opened


class Shop:
    """Writes events about an order of two lines, as often as a test wants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def open(self) -> "Shop":
        buyer: User = await make_user(self.database)
        lines = [(await make_product(self.database), 2), (await make_product(self.database), 1)]
        self.order_id: UUID = (await make_order(self.database, buyer=buyer, lines=lines)).id
        await rows(
            self.database.engine,
            "INSERT INTO order_transitions (order_id, to_status) VALUES (:order, 'pending')",
            order=self.order_id,
        )
        return self

    def placed(self) -> OrderPlaced:
        return OrderPlaced(order_id=self.order_id, buyer_id=1, total=Decimal(30))

    async def confirm(self, times: int = 1) -> None:
        async with UnitOfWork(self.database.write) as uow:
            for _ in range(times):
                uow.record(OrderConfirmed(order_id=self.order_id, total=Decimal(30)))
            await uow.commit()

    async def confirm_on(self, moment: datetime) -> None:
        """An event of an earlier month, which has a partition of its own."""
        async with self.database.engine.begin() as connection:
            await add_partitions(connection, [(moment.year, moment.month)])
        await rows(
            self.database.engine,
            "INSERT INTO events (id, type, version, aggregate, payload) VALUES"
            " (:id, 'order.confirmed', 1, 'order/x', jsonb_build_object('order_id', CAST(:order AS text)))",
            id=uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000),
            order=str(self.order_id),
        )


@pytest.fixture
async def shop(database: Database) -> Shop:
    return await Shop(database).open()


@pytest.fixture
def reporter(database: Database, analytics: Analytics) -> Reporter:
    return Reporter(database, analytics)


async def confirmed(analytics: Analytics) -> int:
    return int((await rows(analytics.engine, CONFIRMED))[0][0])


async def lag(database: Database) -> Lag:
    async with UnitOfWork(database.write) as uow:
        (found,) = await log.lags(uow)
    return found


async def state(analytics: Analytics) -> dict[str, list[Any]]:
    """Everything in the analytics database, as a backup would have it."""
    return {**await content(analytics), "log_places": await rows(analytics.engine, "SELECT * FROM log_places")}


async def restore(analytics: Analytics, backup: dict[str, list[Any]]) -> None:
    for table, kept in backup.items():
        await rows(analytics.engine, f"DELETE FROM {table}")
        for row in kept:
            names = {f"v{number}": value for number, value in enumerate(row)}
            await rows(
                analytics.engine, f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in names)})", **names
            )


async def sink_of(database: Database) -> tuple[Any, ...]:
    """The row of the primary about the sink, and that of its consumer's place, as a backup would have them."""
    (found,) = await rows(
        database.engine,
        "SELECT reads, stored, CAST(seen AS text), CAST(reading AS text), position, until"
        " FROM log_sinks JOIN log_consumers USING (name)",
    )
    return tuple(found)


async def rebuild(reporter: Reporter) -> Any:
    """What `waybill reports rebuild` does, up to the first batch."""
    async with reporter.open() as uow:
        series, reporter.lease, extent = await log.restart_sink(uow, reports.CONSUMER, reporter.owner, 60)
        await uow.commit()
    async with reporter.analytics.open() as work:
        kept = await reports.start_over(work, series, extent.oldest)
        await work.commit()
    return kept


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
    whole = await content(reporter.analytics)
    nothing: dict[str, list[Any]] = {table: [] for table in backup}
    for earlier in (backup, nothing):
        await restore(reporter.analytics, earlier)
        await shop.confirm(1)
        await reporter.step(1)
        # The log keeps what they need again.
        assert (await lag(reporter.database)).events > 1
        await reporter.catch_up(2)
    assert await confirmed(reporter.analytics) == 7
    assert whole != await content(reporter.analytics)


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
    await rows(reporter.database.engine, "DELETE FROM events WHERE position > (SELECT min(position) + 1 FROM events)")
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
    shop: Shop, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("services.analytics.revisions", lambda _: ("0001", "0002"))
        with pytest.raises(SinkUnusable, match="at revision 0001, but this release needs 0002: run `waybill migrate"):
            await reporter.step()
    await rows(reporter.analytics.engine, "DROP TABLE alembic_version")
    with pytest.raises(SinkUnusable, match="has no tables: run `waybill migrate --database analytics`"):
        await reporter.step()


async def test_events_that_come_to_nothing_are_passed(shop: Shop, reporter: Reporter) -> None:
    async with UnitOfWork(shop.database.write) as uow:
        uow.record(OrderConfirmed(order_id=new_id(), total=Decimal(1)))
        await uow.commit()
    await shop.confirm(1)
    await reporter.catch_up(1)
    assert await confirmed(reporter.analytics) == 1
