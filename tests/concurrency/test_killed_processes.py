"""Events that kill the process which tries them: they are found and counted, and cost their neighbours nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.database import Database
from services.outbox.engine.repository import OutboxRepository
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Locked
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import DUE_NOW, Tick, TickHandler, append, drain, effects, rows
from tests.processes import running, wait_until

NOTED = "SELECT aggregate, waits, attempts FROM outbox ORDER BY position"


class Killed(KeyboardInterrupt):
    """Stands in for the end of the process: nothing after it runs, and the server rolls back."""


class Kills(TickHandler):
    """Ends the process if `bad` is in the batch."""

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        if any(claimed.event.name == "bad" for claimed in events):
            raise Killed


def started(database: Database, handler: Any, *, wary: bool = True, attempts: int = 3) -> Processor[UnitOfWork]:
    """The processor of a process that has just started; `wary` if the one before it was killed."""
    engine = Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler, plain_sql=True)],
        retry=RetryPolicy(max_attempts=attempts, base=3600.0, cap=3600.0),
        batch_size=100,
    )
    if wary:
        engine.be_wary()
    return engine


async def run_until_killed(engine: Processor[UnitOfWork]) -> bool:
    """Whether the process was killed before it had nothing more to do."""
    try:
        await drain(engine)
    except Killed:
        return True
    return False


async def test_an_event_that_kills_its_process_becomes_a_dead_letter_after_its_attempts(ticking: Database) -> None:
    names = [f"n{number}" for number in range(20)]
    await append(ticking, *(Tick(name=name) for name in [*names[:10], "bad", *names[10:]]))
    await append(ticking, Tick(name="bad", number=1))

    killed = [await run_until_killed(started(ticking, Kills(), wary=False))]
    while await rows(ticking, "SELECT 1 FROM outbox WHERE available_at IS NULL OR available_at < 'infinity'"):
        await rows(ticking, "UPDATE outbox SET available_at = now() WHERE available_at < 'infinity'")
        killed.append(await run_until_killed(started(ticking, Kills())))

    # Once without a warning, once together with its neighbours, and then on its own, for as many attempts as it has.
    assert killed == [True, True, True, True, True, False]
    assert sorted(await effects(ticking)) == sorted((name, 0) for name in names)
    ((aggregate, attempts, error),) = await rows(ticking, "SELECT aggregate, attempts, error FROM dead_letters")
    assert (aggregate, attempts) == ("tick/bad", 3)
    assert "ProcessDied: the worker process ended during attempt 3, the last one" in error
    assert await rows(ticking, NOTED) == [("tick/bad", "behind", 0)]


async def test_the_neighbours_of_a_killer_are_processed_while_it_waits_and_have_lost_no_attempt(
    ticking: Database,
) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "bad", "b")))
    assert await run_until_killed(started(ticking, Kills()))
    assert await rows(ticking, NOTED) == [(f"tick/{name}", "begun", 0) for name in ("a", "bad", "b")]
    await rows(ticking, DUE_NOW)

    # Any process tries them one by one: here it is one that was not warned.
    handler = Kills()
    while await run_until_killed(started(ticking, handler, wary=False)):
        pass

    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0)]
    assert [len(batch) for batch in handler.batches] == [1, 1, 1]
    assert await rows(ticking, NOTED) == [("tick/bad", "begun", 1)]


async def test_an_attempt_on_its_own_is_counted_before_it_begins(ticking: Database) -> None:
    seen: list[Any] = []

    class Watched(TickHandler):
        async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
            seen.extend(await rows(ticking, NOTED))
            seen.append(events[0].attempts)
            await super().__call__(uow, events)

    await append(ticking, Tick(name="a"), Tick(name="a", number=1))
    await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now() WHERE position = 1")

    await drain(started(ticking, Watched(), wary=False))

    assert seen[:3] == [("tick/a", "begun", 1), ("tick/a", None, 0), 0]
    assert await effects(ticking) == [("a", 0), ("a", 1)]
    assert await rows(ticking, NOTED) == []


@pytest.mark.parametrize(("error", "attempts"), [(ValueError("no"), 1), (Locked("elsewhere"), 0)])
async def test_an_attempt_on_its_own_that_fails_is_counted_once_and_one_that_meets_a_lock_not_at_all(
    ticking: Database, error: Exception, attempts: int
) -> None:
    async def fails(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        raise error

    await append(ticking, Tick(name="a"))
    await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now()")
    await drain(started(ticking, fails, wary=False))
    assert await rows(ticking, NOTED) == [("tick/a", "retry", attempts)]


async def test_after_its_last_attempt_on_its_own_an_event_is_a_dead_letter_with_that_number_of_attempts(
    ticking: Database,
) -> None:
    async def fails(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        raise ValueError("no")

    await append(ticking, Tick(name="a"))
    await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now(), attempts = 2")
    await drain(started(ticking, fails, wary=False))
    assert await rows(ticking, "SELECT attempts, error LIKE '%ValueError: no%' FROM dead_letters") == [(3, True)]


async def test_a_wary_process_counts_a_failure_of_one_of_many_as_usual(ticking: Database) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "poison", "b")))
    handler = TickHandler(lambda claimed: claimed.event.name == "poison")
    await drain(started(ticking, handler))
    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0)]
    assert await rows(ticking, NOTED) == [("tick/poison", "retry", 1)]


@pytest.mark.parametrize("noted", [True, False], ids=["on its own", "with others"])
async def test_a_process_that_was_stopped_after_its_note_leaves_out_what_another_has_processed(
    ticking: Database, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    await append(ticking, Tick(name="a"), Tick(name="b"))
    if noted:
        await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now()")
    take_up: Callable[..., Any] = OutboxRepository.take_up
    stopped = False

    async def take_up_late(self: OutboxRepository, *arguments: Any) -> Any:
        nonlocal stopped
        if not stopped:
            stopped = True
            await rows(ticking, DUE_NOW)
            await drain(started(ticking, TickHandler(), wary=False))
        return await take_up(self, *arguments)

    monkeypatch.setattr(OutboxRepository, "take_up", take_up_late)
    handler = TickHandler()
    await drain(started(ticking, handler))
    assert handler.batches == []
    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0)]
    assert await rows(ticking, NOTED) == []


async def test_an_event_is_not_tried_before_an_earlier_one_that_another_worker_took_after_the_note(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(ticking, Tick(name="a"), Tick(name="a", number=1), Tick(name="b"))
    take_up: Callable[..., Any] = OutboxRepository.take_up
    handler = TickHandler()

    async def take_up_late(self: OutboxRepository, *arguments: Any) -> Any:
        if not handler.batches:
            await rows(ticking, "UPDATE outbox SET attempts = 1 WHERE aggregate = 'tick/a' AND position = 1")
        return await take_up(self, *arguments)

    monkeypatch.setattr(OutboxRepository, "take_up", take_up_late)
    await started(ticking, handler).run_once()
    assert await effects(ticking) == [("b", 0)]
    await rows(ticking, DUE_NOW)
    await drain(started(ticking, handler))
    assert await effects(ticking) == [("b", 0), ("a", 0), ("a", 1)]


async def test_an_event_with_a_note_is_not_tried_before_an_earlier_one_without(ticking: Database) -> None:
    await append(ticking, Tick(name="a"), Tick(name="a", number=1), Tick(name="a", number=2), Tick(name="b"))
    await rows(ticking, "UPDATE outbox SET waits = 'retry', available_at = now() WHERE position = 1")
    await rows(ticking, "UPDATE outbox SET waits = 'begun', available_at = now() WHERE position = 2")
    handler = TickHandler()
    await drain(started(ticking, handler, wary=False))
    assert [effect for effect in await effects(ticking) if effect[0] == "a"] == [("a", 0), ("a", 1), ("a", 2)]
    # It was still tried on its own.
    assert [Tick(name="a", number=1)] in handler.batches


async def test_events_whose_attempt_was_noted_and_did_not_begin_are_due_at_once(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.outbox.engine.service.SAVEPOINT_BUDGET", 3)
    await append(ticking, *(Tick(name=f"bad{number}") for number in range(8)))
    wary = started(ticking, TickHandler(lambda _: True))
    assert (await wary.run_once()).more
    left = "SELECT count(*) FROM outbox WHERE waits = 'behind' AND available_at <= now() AND last_error IS NULL"
    assert (await rows(ticking, left))[0] > 0
    await drain(wary)
    assert await rows(ticking, "SELECT DISTINCT waits, attempts FROM outbox") == [("retry", 1)]


async def test_a_process_is_wary_only_until_the_queue_is_empty(ticking: Database) -> None:
    wary = started(ticking, TickHandler())
    await drain(wary)
    await append(ticking, Tick(name="a"))
    xmin = await rows(ticking, "SELECT xmin::text FROM outbox")
    seen: list[Any] = []

    class Watched(TickHandler):
        async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
            seen.extend(await rows(ticking, "SELECT xmin::text FROM outbox"))
            await super().__call__(uow, events)

    wary._subscriptions = {Tick.type: Subscription(Tick, Watched())}
    await drain(wary)
    assert seen == xmin


async def test_a_real_process_is_killed_no_more_often_than_the_event_has_attempts(
    ticking: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    names = [f"n{number}" for number in range(50)]
    await append(ticking, *(Tick(name=name) for name in [*names[:25], "bad", *names[25:]]))
    deaths = 0
    arguments = ["-m", "tests.concurrency.killed_worker"]
    with psycopg.connect(database_url, autocommit=True) as watch:

        def dead() -> bool:
            return watch.execute("SELECT 1 FROM dead_letters").fetchone() is not None

        while not dead():
            with running([*arguments, "--wary"] if deaths else arguments, settings, tmp_path / "log") as worker:
                wait_until(lambda: dead() or not worker.lives, "the end of the worker or of the event")
            deaths += not dead()
            watch.execute("UPDATE outbox SET available_at = now() WHERE available_at < 'infinity'")
        with running([*arguments, "--wary"], settings, tmp_path / "log"):
            wait_until(lambda: not watch.execute("SELECT 1 FROM outbox").fetchone(), "an empty outbox")

    assert deaths <= 6
    assert sorted(await effects(ticking)) == sorted((name, 0) for name in names)
    assert await rows(ticking, "SELECT aggregate, attempts FROM dead_letters") == [("tick/bad", 3)]
