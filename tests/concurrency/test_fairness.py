"""What fails, is slow, paused or limited does not hold up anything else."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from services.database import Database
from services.fields import new_id
from services.outbox.control import service as control
from services.outbox.control.schemas import By
from services.outbox.engine.schemas import ClaimedRow
from services.outbox.engine.service import Processor
from services.outbox.engine.window import Standstill
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.transaction import SAVEPOINT_BUDGET, Transaction
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import DUE_NOW, LATER, SOON, Tick, TickHandler, append, drain, effects, rows


class Spark(Tick):
    """Of another type."""

    type: ClassVar[str] = "test.spark"


class Flash(Tick):
    """Of a third type."""

    type: ClassVar[str] = "test.flash"


def engine(
    database: Database, *handlers: Any, retry: RetryPolicy = LATER, batch_size: int = 300
) -> Processor[UnitOfWork]:
    """A processor of ticks, sparks and flashes, with a handler for each of them."""
    types = (Tick, Spark, Flash)
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(event, handler, plain_sql=True) for event, handler in zip(types, handlers, strict=False)],
        retry=retry,
        batch_size=batch_size,
    )


async def test_a_type_that_always_fails_does_not_hold_up_another_type(ticking: Database) -> None:
    await append(ticking, *(Spark(name=f"bad{number}") for number in range(1200)))
    await append(ticking, Tick(name="good"))
    both = engine(ticking, TickHandler(), TickHandler(lambda _: True))

    transactions = 0
    while not await effects(ticking):
        await both.run_once()
        transactions += 1

    assert transactions <= 2
    assert await effects(ticking) == [("good", 0)]


async def test_no_transaction_sets_more_savepoints_than_its_budget_whatever_the_types_and_failures(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    savepoint, enter = Transaction.savepoint, Transaction.__aenter__

    async def count_transactions(self: Transaction) -> Transaction:
        opened.append(0)
        return await enter(self)

    def count(self: Transaction, **options: Any) -> Any:
        opened[-1] += 1
        return savepoint(self, **options)

    for number in range(120):
        await append(ticking, Tick(name=f"t{number}"), Spark(name=f"s{number}"), Flash(name=f"f{number}"))
    failing = TickHandler(lambda _: True)
    all_three = engine(ticking, failing, failing, failing)
    monkeypatch.setattr(Transaction, "savepoint", count)
    monkeypatch.setattr(Transaction, "__aenter__", count_transactions)

    outcomes = await drain(all_three)

    assert sum(outcome.retried for outcome in outcomes) == 360
    assert SAVEPOINT_BUDGET / 2 < max(opened) <= SAVEPOINT_BUDGET


async def test_events_that_have_failed_do_not_hold_up_new_ones_of_their_type(ticking: Database) -> None:
    await append(ticking, *(Tick(name=f"bad{number}") for number in range(600)))
    handler = TickHandler(lambda claimed: claimed.event.name.startswith("bad"))
    failing = engine(ticking, handler, retry=SOON)
    while await rows(ticking, "SELECT count(*) FROM outbox WHERE attempts = 0") != [0]:
        await failing.run_once()
    await rows(ticking, DUE_NOW)
    await append(ticking, *(Tick(name=f"good{number}") for number in range(3)))

    outcome = await failing.run_once()

    assert outcome.processed == 3
    assert outcome.retried > 0


async def test_events_woken_behind_discarded_ones_do_not_hold_up_new_ones_if_they_fail(ticking: Database) -> None:
    await append(ticking, *(Tick(name=f"bad{number}", number=step) for step in (0, 1) for number in range(200)))
    handler = TickHandler(lambda claimed: claimed.event.name.startswith("bad"))
    once = engine(ticking, handler, retry=RetryPolicy(max_attempts=1, base=3600.0, cap=3600.0))
    await drain(once)
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [200]
    await rows(ticking, "DELETE FROM dead_letters")
    await rows(ticking, "UPDATE outbox SET available_at = now() - interval '1 s'")
    await append(ticking, *(Tick(name=f"good{number}") for number in range(3)))

    outcome = await once.run_once()

    assert outcome.processed == 3
    assert outcome.buried > 0


async def test_the_fast_path_takes_several_types_without_a_savepoint(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Transaction, **_: Any) -> Any:
        raise AssertionError("a savepoint was set")

    for number in range(20):
        await append(ticking, Tick(name=f"a{number}"), Spark(name=f"a{number}", number=1), Flash(name=f"b{number}"))
    monkeypatch.setattr(Transaction, "savepoint", refuse)
    handlers = TickHandler(), TickHandler(), TickHandler()

    outcomes = await drain(engine(ticking, *handlers))

    assert [outcome.processed for outcome in outcomes if outcome.processed] == [60]
    assert [len(handler.batches) for handler in handlers] == [1, 1, 1]


async def test_a_failure_in_one_of_several_types_undoes_only_its_own_event(ticking: Database) -> None:
    for number in range(10):
        await append(ticking, Tick(name=f"a{number}"), Spark(name=f"a{number}", number=1), Flash(name=f"b{number}"))
    poison = TickHandler(lambda claimed: claimed.event.name == "a3")

    outcomes = await drain(engine(ticking, TickHandler(), poison, TickHandler()))

    assert sum(outcome.retried for outcome in outcomes) == 1
    assert sum(outcome.processed for outcome in outcomes) == 29
    assert len(await effects(ticking)) == 29


async def test_a_deferred_constraint_is_not_blamed_on_a_retried_event_of_the_same_transaction(
    ticking: Database,
) -> None:
    class Twice(TickHandler):
        async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
            await super().__call__(uow, events)
            if any(claimed.event.name == "bad" for claimed in events):
                await super().__call__(uow, events)

    await append(ticking, Tick(name="retried"))
    failing = True
    handler = Twice(lambda claimed: failing and claimed.event.name == "retried")
    both = engine(ticking, handler)
    await drain(both)
    await rows(ticking, DUE_NOW)
    await append(ticking, Tick(name="bad"))
    failing = False

    await drain(engine(ticking, handler))

    assert await effects(ticking) == [("retried", 0)]
    assert await rows(ticking, "SELECT aggregate FROM outbox") == ["tick/bad"]


async def stand_behind(database: Database, number: int) -> None:
    """Events, each behind one of the paused type, and then one that is free."""
    await rows(database, "INSERT INTO outbox_types (type, paused) VALUES ('test.spark', true)")
    for first in range(number):
        await append(database, Spark(name=f"a{first}"), Tick(name=f"a{first}", number=1))
    await append(database, Tick(name="free"))


async def until_still(engine: Processor[UnitOfWork]) -> int:
    """Claim like a poll loop until nothing is blocked any more; return the number of claims."""
    for claims in range(1, 200):
        outcomes = await drain(engine)
        if not outcomes[-1].blocked:
            return claims
    raise AssertionError("events are claimed over and over")


async def test_events_behind_a_paused_type_wait_and_hide_no_others(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.outbox.engine.window._STANDSTILL", 0.0)
    await stand_behind(ticking, 60)
    both = engine(ticking, TickHandler(), TickHandler(), batch_size=20)

    assert await until_still(both) < 20
    assert await effects(ticking) == [("free", 0)]
    behind = "SELECT count(*) FROM outbox WHERE waits = 'behind' AND available_at < 'infinity'"
    assert await rows(ticking, behind) == [60]

    # Resuming makes them look again, however long they were to wait.
    await rows(ticking, "UPDATE outbox SET available_at = now() + interval '1 h' WHERE available_at IS NOT NULL")
    async with UnitOfWork(ticking.write) as uow:
        await control.pause(uow, "test.spark", By("an operator"), paused=False)
        await uow.commit()
    await drain(both)
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]
    for first in range(60):
        assert [effect for effect in await effects(ticking) if effect[0] == f"a{first}"] == [
            (f"a{first}", 0),
            (f"a{first}", 1),
        ]


async def test_events_behind_a_type_whose_slots_are_full_wait_and_hide_no_others(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.outbox.engine.window._STANDSTILL", 0.0)
    await rows(ticking, "INSERT INTO outbox_types (type, max_batches) VALUES ('test.spark', 1)")
    for first in range(60):
        await append(ticking, Spark(name=f"a{first}"), Tick(name=f"a{first}", number=1))
    await append(ticking, Tick(name="free"))
    both = engine(ticking, TickHandler(), TickHandler(), batch_size=20)
    async with ticking.engine.begin() as slot:
        await slot.exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtext(current_schema() || ' outbox ' || 'test.spark'), 1)"
        )
        assert await until_still(both) < 20
        assert await effects(ticking) == [("free", 0)]
    await rows(ticking, DUE_NOW)
    await drain(both)
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]


def row(position: int, *, blocked: bool) -> ClaimedRow:
    return ClaimedRow(position, new_id(), "tick/a", "test.tick", 0, False, False, 1, "{}", None, None, blocked, False)


def test_the_wait_of_a_blocked_event_grows_with_the_time_it_has_been_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((100.0, 100.4, 101.0, 102.0, 104.0, 300.0, 301.0, 302.0))
    monkeypatch.setattr("services.outbox.engine.window.monotonic", lambda: next(times))
    standstill = Standstill()
    assert standstill.overdue([row(1, blocked=True), row(2, blocked=False)]) == {}
    assert standstill.overdue([row(1, blocked=True)]) == {}
    for blocked in (1, 2, 4, 60):
        waits = standstill.overdue([row(1, blocked=True)])
        assert 0.75 <= waits[1] / blocked <= 1.25
    # Once it was free, it starts over.
    assert standstill.overdue([row(1, blocked=False)]) == {}
    assert standstill.overdue([row(1, blocked=True)]) == {}
