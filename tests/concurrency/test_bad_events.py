"""What the engine cannot use: events of other versions, and too few or too many verdicts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from services.database import Database
from services.logs import Repeats
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Unprocessable
from services.outbox.policy import OnDeath, RetryPolicy
from services.outbox.subscription import Subscription, Verdicts
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import (
    DUE_NOW,
    LATER,
    Tick,
    TickHandler,
    append,
    damage,
    drain,
    effects,
    processor,
    replay_letter,
    rows,
)


class NewTick(Tick):
    """The second version counts from a hundred."""

    type: ClassVar[str] = Tick.type
    version: ClassVar[int] = 2

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 1
        return {"name": payload["name"], "number": payload["number"] + 100}


class NewTickThatReadsNoOld(Tick):
    type: ClassVar[str] = Tick.type
    version: ClassVar[int] = 2


def engine(database: Database, handler: Any, event: type[Tick] = Tick, **given: Any) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write), [Subscription(event, handler, **given)], retry=LATER, batch_size=100
    )


async def test_an_event_of_an_older_version_is_read_as_the_new_one(ticking: Database) -> None:
    await append(ticking, Tick(name="a", number=1))
    await drain(engine(ticking, TickHandler(), NewTick))
    assert await effects(ticking) == [("a", 101)]


async def test_an_event_of_an_older_version_that_is_not_read_is_a_dead_letter_and_its_neighbour_is_not(
    ticking: Database,
) -> None:
    await append(ticking, Tick(name="a"), Tick(name="b"))
    await damage(ticking, "UPDATE events SET version = 2 WHERE aggregate = 'tick/b'")

    await drain(engine(ticking, TickHandler(), NewTickThatReadsNoOld))

    assert await effects(ticking) == [("b", 0)]
    ((aggregate, error),) = await rows(ticking, "SELECT aggregate, error FROM dead_letters")
    assert aggregate == "tick/a"
    assert "cannot upgrade 'test.tick' from version 1 to version 2" in error


async def test_an_event_of_an_unknown_version_is_in_its_history_once_for_each_version_that_workers_know(
    ticking: Database,
) -> None:
    await append(ticking, Tick(name="a"))
    await damage(ticking, "UPDATE events SET version = 3")
    for event in (Tick, NewTick, Tick, Tick, NewTick):
        await drain(engine(ticking, TickHandler(), event))
        await rows(ticking, DUE_NOW)
    ((waits, attempts, failures),) = await rows(ticking, "SELECT waits, attempts, failures FROM outbox")
    assert (waits, attempts) == ("unknown", 0)
    assert [failure["error"] for failure in failures] == [
        f"NoHandler: this worker knows version {known} of 'test.tick', not 3" for known in (1, 2)
    ]


def verdicts_of(*verdicts: Exception | None) -> Any:
    async def judge(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> Verdicts:
        # Alone, each one is processed.
        if len(events) == 1:
            await TickHandler()(uow, events)
            return [None]
        await TickHandler()(uow, events)
        return verdicts

    return judge


@pytest.mark.parametrize("verdicts", [(), (None,), (None,) * 5])
async def test_a_wrong_number_of_verdicts_is_rolled_back_and_the_parts_are_tried(
    ticking: Database, verdicts: tuple[Exception | None, ...]
) -> None:
    await append(ticking, *(Tick(name=name) for name in "abc"))
    await drain(engine(ticking, verdicts_of(*verdicts)))
    assert await effects(ticking) == [("a", 0), ("b", 0), ("c", 0)]
    assert await rows(ticking, "SELECT count(*) FROM outbox") == [0]


async def test_no_verdict_for_a_single_event_is_a_failure_that_says_so(ticking: Database) -> None:
    async def silent(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> Verdicts:
        await TickHandler()(uow, events)
        return []

    await append(ticking, Tick(name="a"))
    await drain(engine(ticking, silent))

    assert await effects(ticking) == []
    (error,) = await rows(ticking, "SELECT last_error FROM outbox WHERE attempts = 1")
    assert "HandlerBroken: the handler of 'test.tick' returned 0 verdicts for 1 events" in error


async def test_verdicts_that_continue_after_a_failed_event_of_the_aggregate_are_rolled_back(ticking: Database) -> None:
    async def skipping(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> Verdicts:
        done = [claimed for claimed in events if claimed.event.number != 0]
        if done:
            await TickHandler()(uow, done)
        return [None if claimed.event.number else ValueError("not the first") for claimed in events]

    await append(ticking, Tick(name="a"), Tick(name="a", number=1), Tick(name="b", number=1))
    await drain(engine(ticking, skipping))

    assert await effects(ticking) == [("b", 1)]
    assert await rows(ticking, "SELECT waits, attempts FROM outbox ORDER BY position") == [("retry", 1), ("behind", 0)]


async def test_an_error_of_a_kind_that_is_never_retried_makes_a_dead_letter_immediately(ticking: Database) -> None:
    await append(ticking, Tick(name="a"), Tick(name="b"))
    policy = RetryPolicy(8, 1, 1, never=(ValueError,))

    await drain(engine(ticking, TickHandler(lambda claimed: claimed.event.name == "a"), retry=policy))

    assert await effects(ticking) == [("b", 0)]
    assert await rows(ticking, "SELECT aggregate, attempts FROM dead_letters") == [("tick/a", 1)]


async def test_a_dead_letter_keeps_every_failure_and_keeps_them_when_it_is_replayed(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    broken = engine(ticking, TickHandler(lambda _: True), retry=RetryPolicy(3, 0.001, 0.001))
    for _ in range(3):
        await rows(ticking, DUE_NOW)
        await drain(broken)

    ((attempts, failures, fingerprint),) = await rows(
        ticking, "SELECT attempts, failures, fingerprint FROM dead_letters"
    )
    assert attempts == 3
    assert [failure["attempt"] for failure in failures] == [1, 2, 3]
    assert {failure["fingerprint"] for failure in failures} == {fingerprint}
    assert all("a 0 is poison" in failure["error"] for failure in failures)

    async with UnitOfWork(ticking.write) as uow:
        await replay_letter(uow, (await rows(ticking, "SELECT position FROM dead_letters"))[0])
        await uow.commit()
    assert await rows(ticking, "SELECT attempts, jsonb_array_length(failures) FROM outbox") == [(0, 3)]


async def test_events_after_a_dead_letter_are_processed_if_its_type_says_so(ticking: Database) -> None:
    await append(ticking, *(Tick(name="a", number=number) for number in range(3)))
    fails = TickHandler(lambda claimed: claimed.event.number == 0)
    going_on = engine(ticking, fails, retry=RetryPolicy(2, 0.001, 0.001), on_death=OnDeath.park_and_continue)

    await drain(going_on)
    # While it is tried, they wait.
    assert await effects(ticking) == []
    await rows(ticking, "UPDATE outbox SET available_at = now() WHERE waits = 'retry'")
    await drain(going_on)
    assert await effects(ticking) == [("a", 1), ("a", 2)]
    assert await rows(ticking, "SELECT blocks FROM dead_letters") == [False]


async def test_a_handler_can_declare_an_event_unprocessable(ticking: Database) -> None:
    async def refuse(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> Verdicts:
        return [Unprocessable("no one can") for _ in events]

    await append(ticking, Tick(name="a"))
    await drain(engine(ticking, refuse))
    ((error, attempts),) = await rows(ticking, "SELECT error, attempts FROM dead_letters")
    assert "Unprocessable: no one can" in error
    assert attempts == 1


async def test_of_many_failures_of_one_kind_the_log_has_the_first_and_how_many_were_left_out(
    ticking: Database, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = 0.0

    async def fails(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        raise ValueError("of one kind")

    await append(ticking, *(Tick(name=f"bad{number}") for number in range(30)))
    failing = processor(ticking, fails)
    failing._repeats = Repeats(60.0, lambda: seconds)
    await drain(failing)
    seconds = 61.0
    await append(ticking, Tick(name="bad"))
    await drain(failing)
    said = [record.getMessage() for record in caplog.records if "failed, attempt 1" in record.getMessage()]
    assert len(said) == 2
    assert "more like it" not in said[0]
    assert said[1].endswith("(and 29 more like it since this was last logged)")
