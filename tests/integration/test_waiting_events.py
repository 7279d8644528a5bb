"""What operators do to events that wait: have them tried now, bury them or discard them."""

from typing import Any

import pytest

from services.database import Database
from services.errors import Conflict, InvalidInput, NotFound
from services.outbox.control import service as control
from services.outbox.control import why
from services.outbox.control.schemas import By, Selection
from services.outbox.control.why import State
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import GroupsWanted
from services.outbox.policy import RetryPolicy
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, effects, make_effects, processor, rows

OPS = By("ops", "known bug")
ACTS = (control.retry_now, control.bury_waiting, control.discard_waiting)


@pytest.fixture
async def database(database: Database) -> Database:
    await make_effects(database)
    return database


async def failed(database: Database, *, behind: int = 0) -> list[int]:
    """An event that failed once, and others of its aggregate that wait behind it; their positions."""
    await append(database, *(Tick(name="a", number=number) for number in range(1 + behind)))
    await drain(processor(database, TickHandler(lambda one: one.event.number == 0), retry=LATER))
    return await rows(database, "SELECT position FROM outbox ORDER BY position")


async def act(database: Database, how: Any, position: int, by: By = OPS) -> None:
    async with UnitOfWork(database.write) as uow:
        await how(uow, position, by)
        await uow.commit()


async def actions(database: Database) -> list[Any]:
    return await rows(
        database,
        "SELECT action, actor, reason, aggregate, detail ->> 'waits', detail ->> 'message' LIKE '%is poison%'"
        " FROM outbox_actions ORDER BY id",
    )


async def test_an_event_that_waits_for_its_next_attempt_is_tried_now(database: Database) -> None:
    (position,) = await failed(database)
    await drain(processor(database))
    assert await effects(database) == []
    await act(database, control.retry_now, position)
    await drain(processor(database))
    assert await effects(database) == [("a", 0)]
    assert await actions(database) == [("retry_now", "ops", "known bug", "tick/a", "retry", True)]


@pytest.mark.parametrize("waits", ["unknown", "asked"])
async def test_an_event_that_waits_for_a_worker_or_a_time_is_tried_now(database: Database, waits: str) -> None:
    await append(database, Tick(name="a"))
    await rows(database, f"UPDATE outbox SET waits = '{waits}', available_at = now() + interval '1 hour'")
    await act(database, control.retry_now, (await rows(database, "SELECT position FROM outbox"))[0])
    await drain(processor(database))
    assert await effects(database) == [("a", 0)]


async def test_an_event_behind_another_is_not_tried_unless_nothing_is_before_it(database: Database) -> None:
    first, second = await failed(database, behind=1)
    with pytest.raises(Conflict, match=f"waits behind position {first}; act on that one"):
        await act(database, control.retry_now, second)
    await rows(database, f"DELETE FROM outbox WHERE position = {first}")
    await act(database, control.retry_now, second)
    await drain(processor(database))
    assert await effects(database) == [("a", 1)]


async def test_a_buried_event_is_a_dead_letter_that_can_be_replayed(database: Database) -> None:
    position, *_ = await failed(database, behind=2)
    await act(database, control.bury_waiting, position)
    async with UnitOfWork(database.write) as uow:
        dead, *behind = await why.of_aggregate(uow, "tick/a")
        (group,) = (await inspection.groups(uow, GroupsWanted())).data
    assert (dead.position, dead.state, dead.attempts) == (position, State.dead, 1)
    assert "is poison" in group.message
    assert [one.blocker for one in behind] == [dead, dead]
    assert await rows(database, "SELECT failures -> -1 ->> 'fingerprint' FROM dead_letters") == [group.fingerprint]
    await drain(processor(database))
    assert await effects(database) == []
    async with UnitOfWork(database.write) as uow:
        await control.replay(uow, Selection(position=position), OPS)
        await uow.commit()
    await drain(processor(database))
    assert await effects(database) == [("a", 0), ("a", 1), ("a", 2)]
    assert (await actions(database))[0] == ("bury", "ops", "known bug", "tick/a", "retry", True)


async def test_an_event_without_an_error_can_be_buried(database: Database) -> None:
    await append(database, Tick(name="a"))
    await rows(database, "UPDATE outbox SET waits = 'asked', available_at = now() + interval '1 hour'")
    await act(database, control.bury_waiting, (await rows(database, "SELECT position FROM outbox"))[0])
    async with UnitOfWork(database.write) as uow:
        (group,) = (await inspection.groups(uow, GroupsWanted())).data
    assert group.message == "buried by an operator before its first attempt"
    assert len(group.fingerprint) == 16


async def test_a_discarded_event_lets_those_behind_it_proceed_and_needs_a_reason(database: Database) -> None:
    position, *_ = await failed(database, behind=2)
    with pytest.raises(InvalidInput, match="a reason is required"):
        await act(database, control.discard_waiting, position, By("ops", " "))
    await act(database, control.discard_waiting, position)
    await drain(processor(database))
    assert await effects(database) == [("a", 1), ("a", 2)]
    assert await actions(database) == [("discard", "ops", "known bug", "tick/a", "retry", True)]


@pytest.mark.parametrize("how", ACTS)
async def test_only_an_event_that_waits_and_is_not_locked_can_be_acted_on(database: Database, how: Any) -> None:
    with pytest.raises(NotFound, match="no event waits at position 999"):
        await act(database, how, 999)
    await append(database, Tick(name="ready"))
    (ready,) = await rows(database, "SELECT position FROM outbox")
    with pytest.raises(Conflict, match="is ready or being processed"):
        await act(database, how, ready)
    await drain(processor(database))
    (position,) = await failed(database)
    async with UnitOfWork(database.write) as worker:
        assert await worker.control.lock_waiting(position) is not None
        with pytest.raises(Conflict, match="another transaction has locked"):
            await act(database, how, position)
    await rows(database, "UPDATE outbox SET available_at = now()")
    once = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)
    await drain(processor(database, TickHandler(lambda _: True), retry=once))
    with pytest.raises(Conflict, match="is a dead letter: replay or discard it"):
        await act(database, how, position)
    assert await actions(database) == []
