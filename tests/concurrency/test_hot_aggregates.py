"""Many events that wait behind one of their aggregate: they are woken a window at a time, and none stays asleep."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.engine import repository
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import SOON, Tick, TickHandler, append, drain, effects, processor, rows

HOT = 200_000
SLICE = 20_000
WAKE_THE_FIRST = "UPDATE outbox SET available_at = now() WHERE waits = 'retry'"
ASLEEP = "SELECT count(*) FROM outbox WHERE available_at = 'infinity'"
DUE = "SELECT count(*) FROM outbox WHERE available_at <= now()"
AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)


class Quick(TickHandler):
    """Writes its effects in one statement; the very first event fails as long as `fails` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = True

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        if self.fails and events[0].event.number == 0:
            raise ValueError("the first one fails")
        numbers = [claimed.event.number for claimed in events]
        connection = await uow.session.connection()
        await connection.execute(
            text(
                "INSERT INTO effects (name, number) SELECT 'hot', number FROM unnest(CAST(:numbers AS int[])) AS number"
            ),
            {"numbers": numbers},
        )


async def test_two_hundred_thousand_events_behind_a_failed_one_are_all_processed_in_order(ticking: Database) -> None:
    for start in range(0, HOT, SLICE):
        await append(ticking, *(Tick(name="hot", number=number) for number in range(start, start + SLICE)))
    handler = Quick()
    engine = processor(ticking, handler, batch_size=5000)
    await drain(engine)
    assert await rows(ticking, ASLEEP) == [HOT - 1]

    await rows(ticking, WAKE_THE_FIRST)
    handler.fails = False
    most = 0
    outcome = await engine.run_once()
    while outcome.more:
        (due,) = await rows(ticking, DUE)
        most = max(most, due)
        outcome = await engine.run_once()

    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]
    assert most == repository._WOKEN
    misplaced = (
        "SELECT count(*) FROM (SELECT number, row_number() OVER (ORDER BY id) - 1 AS place FROM effects) AS done"
    )
    assert await rows(ticking, f"{misplaced} WHERE number <> place") == [0]
    assert await rows(ticking, "SELECT count(*) FROM effects") == [HOT]


@pytest.fixture
def windows_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_WOKEN", 3)


async def asleep_behind(database: Database, retry: RetryPolicy, events: int) -> None:
    """The first event of an aggregate failed, and the others wait for it."""
    await append(database, *(Tick(name="a", number=number) for number in range(events)))
    await drain(processor(database, TickHandler(lambda claimed: claimed.event.number == 0), retry=retry))
    assert await rows(database, ASLEEP) == [events - 1]


@pytest.mark.usefixtures("windows_of_three")
async def test_discarding_a_dead_letter_wakes_the_first_events_behind_it_and_those_wake_the_rest(
    ticking: Database,
) -> None:
    await asleep_behind(ticking, AT_ONCE_DEAD, 20)
    async with UnitOfWork(ticking.write) as uow:
        await control.discard(uow, Selection(aggregate="tick/a"), By("an operator", "not wanted"))
        await uow.commit()
    assert await rows(ticking, ASLEEP) == [16]
    await drain(processor(ticking, batch_size=2))
    assert await effects(ticking) == [("a", number) for number in range(1, 20)]
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]


@pytest.mark.usefixtures("windows_of_three")
async def test_discarding_the_last_event_that_is_awake_wakes_the_next_ones(ticking: Database) -> None:
    await asleep_behind(ticking, SOON, 8)
    await rows(ticking, WAKE_THE_FIRST)
    await processor(ticking, batch_size=1).run_once()
    for _ in range(3):
        (first,) = await rows(ticking, "SELECT min(position) FROM outbox")
        async with UnitOfWork(ticking.write) as uow:
            await control.discard_waiting(uow, first, By("an operator", "not wanted"))
            await uow.commit()
    assert await rows(ticking, ASLEEP) == [1]
    await drain(processor(ticking))
    assert await effects(ticking) == [("a", 0), *(("a", number) for number in range(4, 8))]


@pytest.mark.usefixtures("windows_of_three")
async def test_burying_and_replaying_an_event_in_the_middle_of_a_window_strands_nothing(ticking: Database) -> None:
    await asleep_behind(ticking, SOON, 12)
    await rows(ticking, WAKE_THE_FIRST)
    await processor(ticking, batch_size=1).run_once()
    (second,) = await rows(ticking, "SELECT position FROM outbox ORDER BY position OFFSET 1 LIMIT 1")
    async with UnitOfWork(ticking.write) as uow:
        await control.bury_waiting(uow, second, By("an operator"))
        await uow.commit()
    await drain(processor(ticking))
    assert await effects(ticking) == [("a", 0), ("a", 1)]
    async with UnitOfWork(ticking.write) as uow:
        await control.replay(uow, Selection(position=second), By("an operator"))
        await uow.commit()
    await drain(processor(ticking))
    assert await effects(ticking) == [("a", number) for number in range(12)]


@pytest.mark.usefixtures("windows_of_three")
async def test_an_event_that_fails_again_puts_the_rest_of_its_window_back_to_sleep(ticking: Database) -> None:
    await asleep_behind(ticking, SOON, 12)
    await rows(ticking, WAKE_THE_FIRST)
    later = RetryPolicy(max_attempts=100, base=3600.0, cap=3600.0)
    await drain(processor(ticking, TickHandler(lambda claimed: claimed.event.number == 2), retry=later))
    assert await effects(ticking) == [("a", 0), ("a", 1)]
    assert await rows(ticking, ASLEEP) == [9]
    await rows(ticking, WAKE_THE_FIRST)
    await drain(processor(ticking))
    assert await effects(ticking) == [("a", number) for number in range(12)]
