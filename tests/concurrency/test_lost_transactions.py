"""An event that costs each transaction its connection is found, and an outage costs no event an attempt."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from services.database import Database
from services.outbox.engine.repository import OutboxRepository
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.outbox.engine.window import Portion
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription, TimeLimitTooLong
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, effects, rows
from worker import context
from worker.context import open_worker

WAITING = "SELECT aggregate, attempts FROM outbox ORDER BY position"
NAMES = [f"n{number}" for number in range(20)]


class Crashing(TickHandler):
    """Ends its own server process, as a crash does, at a tick about `bad`; at most `times` times."""

    def __init__(self, bad: Sequence[str] = ("bad",), times: int = 10**6) -> None:
        super().__init__()
        self._bad = bad
        self.left = times

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        if self.left and any(claimed.event.name in self._bad for claimed in events):
            self.left -= 1
            await rows_of(uow, "SELECT pg_terminate_backend(pg_backend_pid())")


async def rows_of(uow: UnitOfWork, statement: str) -> None:
    await (await uow.session.connection()).exec_driver_sql(statement)


def engine(database: Database, handler: Any, *, plain: bool = False, attempts: int = 100) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler, plain_sql=plain, retry=RetryPolicy(attempts, 3600.0, 3600.0))],
        retry=LATER,
        batch_size=100,
    )


async def drain(processor: Processor[UnitOfWork], *, most: int = 100) -> tuple[list[Outcome], int]:
    """The outcomes until there is nothing more, as in a poll loop, and the number of lost transactions."""
    outcomes: list[Outcome] = []
    lost = 0
    for _ in range(most):
        try:
            outcomes.append(await processor.run_once())
        except DBAPIError:
            lost += 1
        else:
            if not outcomes[-1].more:
                return outcomes, lost
    raise AssertionError(f"it goes on after {most} transactions, of which {lost} were lost")


@pytest.mark.parametrize("begun", [False, True], ids=["together", "one by one"])
async def test_they_cost_no_event_an_attempt_in_a_wary_worker_either(ticking: Database, begun: bool) -> None:
    await append(ticking, *(Tick(name=name) for name in NAMES[:4]))
    if begun:
        await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now()")
    wary = engine(ticking, Crashing(NAMES, times=3), attempts=1)
    wary.be_wary()
    _, lost = await drain(wary)
    assert lost == 3
    assert sorted(await effects(ticking)) == [(name, 0) for name in NAMES[:4]]


@pytest.mark.parametrize("plain", [False, True], ids=["orm", "plain"])
async def test_an_event_that_costs_each_transaction_its_connection_is_found_and_counted(
    ticking: Database, plain: bool
) -> None:
    await append(ticking, *(Tick(name=name) for name in [*NAMES[:7], "bad", *NAMES[7:]]))
    await append(ticking, Tick(name="bad", number=1))

    outcomes, lost = await drain(engine(ticking, Crashing(), plain=plain))

    assert sorted(await effects(ticking)) == sorted((name, 0) for name in NAMES)
    assert await rows(ticking, WAITING) == [("tick/bad", 1), ("tick/bad", 0)]
    (error,) = await rows(ticking, "SELECT last_error FROM outbox WHERE attempts = 1")
    assert "terminating connection" in error or "connection was closed" in error
    assert sum(outcome.retried for outcome in outcomes) == 1
    assert lost < 20


async def test_it_becomes_a_dead_letter_after_its_last_attempt(ticking: Database) -> None:
    await append(ticking, Tick(name="bad"))
    crashing = engine(ticking, Crashing(), attempts=2)
    await drain(crashing)
    await rows(ticking, "UPDATE outbox SET available_at = now()")
    await drain(crashing)
    assert await rows(ticking, "SELECT aggregate, attempts FROM dead_letters") == [("tick/bad", 2)]


async def test_connections_that_are_lost_for_a_time_cost_no_event_an_attempt(ticking: Database) -> None:
    await append(ticking, *(Tick(name=name) for name in NAMES[:4]))
    outcomes, lost = await drain(engine(ticking, Crashing(NAMES, times=5)))
    assert lost == 5
    assert sorted(await effects(ticking)) == [(name, 0) for name in NAMES[:4]]
    assert sum(outcome.retried for outcome in outcomes) == 0


@pytest.mark.parametrize(("owner", "call"), [(OutboxRepository, "claim"), (UnitOfWork, "commit")])
async def test_an_outage_that_a_claim_or_a_commit_meets_costs_no_attempt_however_long_it_is(
    ticking: Database, monkeypatch: pytest.MonkeyPatch, owner: type, call: str
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise OperationalError("", None, OSError("away"), connection_invalidated=True)

    await append(ticking, Tick(name="a"))
    processor = engine(ticking, TickHandler())
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, away)
        for _ in range(20):
            with pytest.raises(DBAPIError):
                await processor.run_once()
    assert await rows(ticking, WAITING) == [("tick/a", 0)]
    assert [outcome.processed for outcome in (await drain(processor))[0]] == [1]


def test_a_portion_is_halved_by_each_loss_and_doubled_by_each_commit() -> None:
    portion = Portion()
    rows: Any = [Row(position) for position in range(8)]
    taken = []
    for lost in (True, True, True, False, False, False, False):
        taken.append(len(portion.of(rows)))
        if lost:
            portion.lost(ValueError())
        else:
            portion.committed()
    assert taken == [8, 4, 2, 1, 2, 4, 8]


class Row:
    def __init__(self, position: int) -> None:
        self.position = position


async def test_a_worker_refuses_a_time_limit_that_the_database_would_cut_short(
    ticking: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Subscription(Tick, TickHandler(), time_limit=60.0)
    monkeypatch.setattr(context, "SUBSCRIPTIONS", (slow,))
    with pytest.raises(TimeLimitTooLong, match=r"'test.tick' may take 60 s.* idle for 40 s.*IDLE_IN_TRANSACTION"):
        async with open_worker(settings):
            pass
    patient = settings.model_copy(update={"database_idle_in_transaction_timeout": 61.0})
    async with open_worker(patient):
        pass
