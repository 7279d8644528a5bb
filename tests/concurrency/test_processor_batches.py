"""One batch, one transaction: what commits together, what fails alone, and what rolls everything back."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.database import Database
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import (
    DUE_NOW,
    SOON,
    Tick,
    TickHandler,
    append,
    damage,
    drain,
    effects,
    processor,
    rows,
)
from tests.factories import count_statements

# What a PostgreSQL backend's cache of subtransactions holds.
MOST_SAVEPOINTS = 64
TOCKS = "SELECT payload ->> 'name' FROM events WHERE type = 'test.tock' ORDER BY 1"
WAITING = "SELECT aggregate, attempts FROM outbox ORDER BY position"


def named(names: str) -> list[Tick]:
    return [Tick(name=name) for name in names]


async def test_effects_next_events_and_the_deletion_are_one_commit(ticking: Database) -> None:
    await append(ticking, *named("abc"))
    handler = TickHandler()

    outcome = await processor(ticking, handler).run_once()

    assert outcome.processed == 3
    assert len(handler.batches) == 1
    assert await effects(ticking) == [("a", 0), ("b", 0), ("c", 0)]
    assert await rows(ticking, TOCKS) == ["a", "b", "c"]
    assert await rows(ticking, WAITING) == []


class FailingCommit(UnitOfWork):
    """Its commit always fails: the key of the effects is checked then, and is used twice."""

    async def commit(self) -> None:
        connection = await self.session.connection()
        await connection.execute(text("INSERT INTO effects (name, number) VALUES ('twice', 0), ('twice', 0)"))
        await super().commit()


async def test_a_commit_that_fails_leaves_no_effect_no_next_event_and_every_outbox_row(ticking: Database) -> None:
    await append(ticking, *named("abc"))
    failing = Processor[UnitOfWork](
        lambda: FailingCommit(ticking.write), [Subscription(Tick, TickHandler())], retry=SOON, batch_size=100
    )

    with pytest.raises(IntegrityError):
        await failing.run_once()

    assert await effects(ticking) == []
    assert await rows(ticking, TOCKS) == []
    assert await rows(ticking, WAITING) == [("tick/a", 0), ("tick/b", 0), ("tick/c", 0)]


async def test_a_poison_event_is_found_and_put_off_and_its_neighbours_commit(ticking: Database) -> None:
    await append(ticking, *named("abcdefghij"))
    poisoned = TickHandler(lambda claimed: claimed.event.name == "g")

    outcome = await processor(ticking, poisoned, retry=RetryPolicy(8, 100.0, 1000.0)).run_once()

    assert (outcome.processed, outcome.retried, outcome.buried) == (9, 1, 0)
    assert sorted(await effects(ticking)) == [(name, 0) for name in "abcdefhij"]
    assert await rows(ticking, TOCKS) == list("abcdefhij")
    waiting = "SELECT aggregate, attempts, extract(epoch FROM available_at - now())::float, last_error FROM outbox"
    ((aggregate, attempts, delay, error),) = await rows(ticking, waiting)
    assert (aggregate, attempts) == ("tick/g", 1)
    assert 40 < delay <= 100
    assert "ValueError: g 0 is poison" in error


async def test_each_further_attempt_waits_longer_up_to_the_cap() -> None:
    policy = RetryPolicy(max_attempts=8, base=1.0, cap=30.0)

    delays = [max(policy.delay(attempts) for _ in range(200)) for attempts in range(8)]

    assert delays[:5] == sorted(delays[:5])
    assert [delay <= longest for delay, longest in zip(delays, (1, 2, 4, 8, 16, 30, 30, 30), strict=True)] == [True] * 8
    assert all(policy.delay(4) >= 8 for _ in range(200))


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
async def test_a_deadlock_or_serialization_failure_rolls_the_batch_back_and_counts_no_attempt(
    ticking: Database, sqlstate: str
) -> None:
    await append(ticking, *named("abcd"))

    async def chosen_as_victim(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await TickHandler()(uow, events)
        connection = await uow.session.connection()
        await connection.execute(text(f"DO $$ BEGIN RAISE 'as if' USING ERRCODE = '{sqlstate}'; END $$"))

    with pytest.raises(DBAPIError, match="as if"):
        await processor(ticking, chosen_as_victim).run_once()

    assert await effects(ticking) == []
    assert await rows(ticking, WAITING) == [(f"tick/{name}", 0) for name in "abcd"]
    assert (await processor(ticking).run_once()).processed == 4


async def test_a_connection_lost_in_the_middle_of_a_batch_rolls_everything_back(ticking: Database) -> None:
    await append(ticking, *named("abcd"))

    async def lose_the_connection(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await TickHandler()(uow, events)
        connection = await uow.session.connection()
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await rows(ticking, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        await connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError):
        await processor(ticking, lose_the_connection).run_once()

    assert await effects(ticking) == []
    assert await rows(ticking, TOCKS) == []
    assert await rows(ticking, WAITING) == [(f"tick/{name}", 0) for name in "abcd"]
    assert (await processor(ticking).run_once()).processed == 4


async def test_hundreds_of_poison_events_stay_within_the_savepoint_budget_of_each_transaction(
    ticking: Database,
) -> None:
    await append(ticking, *(Tick(name=f"{number:03d}") for number in range(300)))
    handler = TickHandler(lambda claimed: int(claimed.event.name) % 10 != 0)
    engine = processor(ticking, handler, batch_size=200)

    more = True
    while more:
        with count_statements(ticking.engine) as sent:
            outcome = await engine.run_once()
        assert sum(statement.startswith("SAVEPOINT") for statement in sent.statements) <= MOST_SAVEPOINTS
        more = outcome.more

    # One look at the outbox was enough: what the budget had no room for did not wait for the next.
    assert sorted(await effects(ticking)) == [(f"{number:03d}", 0) for number in range(0, 300, 10)]
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE attempts = 1") == [270]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (
            """UPDATE events SET payload = '{"name": [1]}' WHERE aggregate = 'tick/b'""",
            "the payload is not a valid 'test.tick' of version 1",
        ),
        ("DELETE FROM events WHERE aggregate = 'tick/b'", "is not in the log"),
    ],
    ids=["payload", "log"],
)
async def test_an_event_that_cannot_be_read_becomes_a_dead_letter_immediately(
    ticking: Database, spoil: str, error: str
) -> None:
    await append(ticking, *named("abc"))
    await damage(ticking, spoil)

    outcomes = await drain(processor(ticking, retry=SOON))

    assert [(outcome.processed, outcome.buried) for outcome in outcomes] == [(2, 1)]
    assert await effects(ticking) == [("a", 0), ("c", 0)]
    ((aggregate, attempts, said),) = await rows(ticking, "SELECT aggregate, attempts, error FROM dead_letters")
    assert (aggregate, attempts) == ("tick/b", 1)
    assert error in said
    assert await rows(ticking, WAITING) == []


OF_A_NEWER_RELEASE = pytest.mark.parametrize(
    ("spoil", "mend", "error"),
    [
        (
            "UPDATE outbox SET type = 'test.unknown' WHERE position ="
            " (SELECT min(position) FROM outbox WHERE aggregate = 'tick/b')",
            "UPDATE outbox SET type = 'test.tick' WHERE aggregate = 'tick/b'",
            r"has a handler for .*'test\.unknown'",
        ),
        (
            "UPDATE events SET version = 2 WHERE aggregate = 'tick/b'",
            "UPDATE events SET version = 1 WHERE aggregate = 'tick/b'",
            r"version 1 of 'test\.tick', not 2",
        ),
    ],
    ids=["type", "version"],
)
"""Events that only a worker of a newer release can process; `mend` makes this worker the newer one."""


@OF_A_NEWER_RELEASE
async def test_an_event_of_an_unknown_type_or_version_waits_for_a_worker_that_knows_it(
    ticking: Database, spoil: str, mend: str, error: str
) -> None:
    await append(ticking, *named("abc"), Tick(name="b", number=1))
    await damage(ticking, spoil)
    # It is not the event's failure: not even the last attempt is lost.
    engine = processor(ticking, retry=RetryPolicy(max_attempts=1, base=0.001, cap=0.001))

    outcomes = await drain(engine)
    await engine.park_unknown()
    outcomes += await drain(engine)

    assert [(sum(outcome.processed for outcome in outcomes), sum(outcome.buried for outcome in outcomes))] == [(2, 0)]
    assert await effects(ticking) == [("a", 0), ("c", 0)]
    waiting = "SELECT waits, attempts FROM outbox ORDER BY position"
    assert await rows(ticking, waiting) == [("unknown", 0), ("behind", 0)]
    (said,) = await rows(ticking, "SELECT last_error FROM outbox WHERE waits = 'unknown'")
    assert re.search(error, said), said

    await damage(ticking, mend)
    await rows(ticking, DUE_NOW)
    await drain(processor(ticking))
    assert [number for name, number in await effects(ticking) if name == "b"] == [0, 1]
    assert await rows(ticking, WAITING) == []


async def test_a_failed_half_leaves_nothing_of_its_handlers_work(ticking: Database) -> None:
    """A failing half's effects and next events are undone by its savepoint, even those written before the error."""
    await append(ticking, *named("ab"))
    seen: list[Any] = []

    async def fail_whole(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await TickHandler()(uow, events)
        seen.append(len(events))
        raise RuntimeError("no")

    outcome = await processor(ticking, fail_whole).run_once()

    assert (outcome.processed, outcome.retried) == (0, 2)
    # The whole without a savepoint, the whole in one, then the halves.
    assert seen == [2, 2, 1, 1]
    assert await effects(ticking) == []
    assert await rows(ticking, TOCKS) == []
