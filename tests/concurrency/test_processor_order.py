"""Events of one aggregate take effect once and in order, whatever fails and however many work at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.engine import repository
from services.outbox.engine.schemas import Span
from services.outbox.events import Claimed
from services.outbox.models import MAX_POSITION
from services.outbox.policy import RetryPolicy
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import (
    DUE_NOW,
    LATER,
    SOON,
    Tick,
    TickHandler,
    append,
    drain,
    effects,
    processor,
    rows,
)

AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)


def numbered(name: str, start: int, stop: int) -> list[Tick]:
    return [Tick(name=name, number=number) for number in range(start, stop)]


async def test_events_after_one_that_was_put_off_wait_behind_it_and_others_do_not(ticking: Database) -> None:
    await append(ticking, *numbered("a", 0, 3), *numbered("b", 0, 3))
    poisoned = TickHandler(lambda claimed: claimed.event == Tick(name="a", number=1))

    await drain(processor(ticking, poisoned, retry=LATER))
    assert await effects(ticking) == [("a", 0), ("b", 0), ("b", 1), ("b", 2)]
    # They are hidden from claims with it.
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at > now()") == [2]
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at IS NULL") == [0]

    await rows(ticking, DUE_NOW)
    await drain(processor(ticking))
    assert [number for name, number in await effects(ticking) if name == "a"] == [0, 1, 2]


async def test_an_event_out_of_attempts_becomes_a_dead_letter_that_only_its_aggregate_waits_for(
    ticking: Database,
) -> None:
    await append(ticking, *numbered("a", 0, 3), *numbered("b", 0, 2))
    poisoned = TickHandler(lambda claimed: claimed.event == Tick(name="a", number=0))
    engine = processor(ticking, poisoned, retry=RetryPolicy(max_attempts=3, base=0.001, cap=0.001))

    outcomes = []
    for _ in range(3):
        await rows(ticking, DUE_NOW)
        outcomes += await drain(engine)
    # Events that come after the dead letter wait as well.
    await append(ticking, *numbered("a", 3, 4), *numbered("b", 2, 3))
    outcomes += await drain(engine)

    assert [outcome.retried for outcome in outcomes] == [1, 1, 0, 0]
    assert [outcome.buried for outcome in outcomes] == [0, 0, 1, 0]
    assert await effects(ticking) == [("b", 0), ("b", 1), ("b", 2)]
    assert await rows(ticking, "SELECT aggregate, attempts FROM dead_letters") == [("tick/a", 3)]
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at = 'infinity'") == [3]


async def test_an_event_that_comes_after_a_dead_letter_waits_even_if_nothing_else_does(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    await drain(processor(ticking, TickHandler(lambda _: True), retry=AT_ONCE_DEAD))

    await append(ticking, Tick(name="a", number=1), Tick(name="b"))
    await drain(processor(ticking))

    assert await effects(ticking) == [("b", 0)]
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at = 'infinity'") == [1]


async def test_a_replayed_dead_letter_takes_effect_before_those_that_waited_for_it(ticking: Database) -> None:
    await append(ticking, *numbered("a", 0, 3))
    await drain(processor(ticking, TickHandler(lambda claimed: claimed.event.number == 0), retry=AT_ONCE_DEAD))
    await append(ticking, *numbered("a", 3, 5))
    await drain(processor(ticking))
    assert await effects(ticking) == []

    async with UnitOfWork(ticking.write) as uow:
        (position,) = await rows(ticking, "SELECT position FROM dead_letters")
        await control.replay(uow, Selection(position=position), By("ops"))
        await uow.commit()
    await drain(processor(ticking))

    assert await effects(ticking) == [("a", number) for number in range(5)]
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [0]


async def test_ten_thousand_rows_behind_one_that_was_put_off_do_not_starve_others(ticking: Database) -> None:
    await append(ticking, Tick(name="hot"))
    poisoned = TickHandler(lambda claimed: claimed.event.name == "hot")
    engine = processor(ticking, poisoned, batch_size=200)
    await drain(engine)
    # They arrive after the head was put off: only a claim finds out that they have to wait.
    await append(ticking, *numbered("hot", 1, 10_001))
    await append(ticking, *numbered("cold", 0, 500))

    # One look at the outbox, without waiting for the next.
    await drain(engine)

    assert await effects(ticking) == [("cold", number) for number in range(500)]
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at IS NULL") == [0]

    await rows(ticking, DUE_NOW)
    for _ in range(3):
        await processor(ticking, batch_size=200).run_once()
    took_effect = (await effects(ticking))[500:]
    assert len(took_effect) > 100
    assert took_effect == [("hot", number) for number in range(len(took_effect))]


async def test_a_processor_neither_takes_nor_waits_for_what_another_has_locked(ticking: Database) -> None:
    await append(ticking, *(Tick(name=name) for name in "abcdef"), Tick(name="a", number=1))
    holding, go_on = asyncio.Event(), asyncio.Event()

    async def wait(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await TickHandler()(uow, events)
        holding.set()
        await go_on.wait()

    first = asyncio.create_task(processor(ticking, wait, batch_size=3).run_once())
    try:
        await asyncio.wait_for(holding.wait(), 30)
        outcome = await processor(ticking, batch_size=100).run_once()
        # The second event of `a` is not locked, but it is not its turn.
        assert outcome.processed == 3
        assert await effects(ticking) == [("d", 0), ("e", 0), ("f", 0)]
    finally:
        go_on.set()
        await first
    assert (await processor(ticking).run_once()).processed == 1
    assert sorted(await effects(ticking)) == [("a", 0), ("a", 1)] + [(name, 0) for name in "bcdef"]


@pytest.mark.parametrize(("processors", "woken"), [(2, 2000), (4, 2000), (3, 1)])
async def test_order_is_kept_by_several_processors_under_random_failures(
    ticking: Database, monkeypatch: pytest.MonkeyPatch, processors: int, woken: int
) -> None:
    monkeypatch.setattr(repository, "_WOKEN", woken)
    chance = random.Random(processors)
    names, length = [f"n{number}" for number in range(25)], 24
    ticks = [Tick(name=name, number=number) for number in range(length) for name in names]
    for start in range(0, len(ticks), 50):
        await append(ticking, *ticks[start : start + 50])

    async def work(number: int) -> None:
        engine = processor(ticking, TickHandler(lambda _: chance.random() < 0.05), retry=SOON, batch_size=17 + number)
        while await rows(ticking, "SELECT 1 FROM outbox LIMIT 1"):
            try:
                await drain(engine)
            except DBAPIError as error:
                # Two that put off each other's aggregates: one is the deadlock victim and is retried, as in the poller.
                assert getattr(error.orig, "sqlstate", None) == "40P01", error  # noqa: PT017
            await asyncio.sleep(0.002)

    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        for number in range(processors):
            group.create_task(work(number))

    took_effect = await effects(ticking)
    for name in names:
        assert [number for other, number in took_effect if other == name] == list(range(length)), name
    assert len(took_effect) == len(ticks)


class Unwanted(Tick):
    """An event that no worker here takes."""

    type: ClassVar[str] = "test.unwanted"


async def test_earlier_events_of_an_aggregate_are_found_even_far_from_the_head_of_the_queue(ticking: Database) -> None:
    """Beyond the rows that a claim reads at the head, aggregates are looked up."""
    await append(ticking, *[Unwanted(name=f"other {number}", number=0) for number in range(40)])
    await append(ticking, Unwanted(name="a", number=0), *numbered("a", 1, 2), *numbered("b", 0, 1))

    # No worker takes the forty-one before.
    await drain(processor(ticking, batch_size=2))

    assert await effects(ticking) == [("b", 0)]


async def test_a_batch_that_does_not_fail_is_processed_without_a_savepoint_and_one_that_does_in_savepoints(
    ticking: Database,
) -> None:
    depths: list[int] = []

    class Watching(UnitOfWork):
        @asynccontextmanager
        async def savepoint(self, *, plain: bool = False, check: bool = False) -> AsyncIterator[None]:
            depths.append(1)
            async with super().savepoint(plain=plain, check=check):
                yield

    engine = processor(ticking)
    engine._open = lambda: Watching(ticking.write)
    await append(ticking, *numbered("a", 0, 3))
    await engine.run_once()
    assert depths == []
    await append(ticking, Tick(name="bad", number=0), *numbered("b", 0, 1))
    engine = processor(ticking, TickHandler(lambda claimed: claimed.event.name == "bad"))
    engine._open = lambda: Watching(ticking.write)
    await engine.run_once()
    assert len(depths) == 3
    assert [effect for effect in await effects(ticking) if effect[0] == "b"] == [("b", 0)]


async def test_the_very_first_event_is_found_after_any_number_of_looks_at_an_outbox_that_never_held_one(
    ticking: Database,
) -> None:
    assert await rows(ticking, "SELECT is_called FROM outbox_position_seq") == [False]
    engine = processor(ticking)
    for _ in range(5):
        await engine.run_once()
    await append(ticking, *numbered("a", 0, 1))

    await drain(engine)

    assert await effects(ticking) == [("a", 0)]


async def test_a_claim_does_not_read_the_event_of_a_row_that_is_blocked(ticking: Database) -> None:
    await append(ticking, *numbered("a", 0, 2))
    span = Span("test.tick", 0, MAX_POSITION, 1, 1, 1)
    async with UnitOfWork(ticking.write) as one, UnitOfWork(ticking.write) as other:
        claimed = [await one.outbox.claim([span], 0), await other.outbox.claim([span], 0)]
    assert [(row.blocked, row.payload is None) for _, locked in claimed for row in locked] == [
        (False, False),
        (True, True),
    ]
