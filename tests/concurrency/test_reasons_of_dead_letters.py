"""A dead letter says why its event failed, whatever killed it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Unprocessable
from services.outbox.models import FailureReason
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, processor, rows

AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)
REASONS = "SELECT aggregate, reason, failures -> -1 ->> 'reason' FROM dead_letters ORDER BY position"


def strict(database: Database, handler: Any, *, time_limit: float = 5.0) -> Processor[UnitOfWork]:
    """A processor that makes a dead letter of what fails once."""
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler)],
        retry=AT_ONCE_DEAD,
        batch_size=100,
        time_limit=time_limit,
    )


async def refuse(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    raise ValueError("poison")


async def give_up(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    raise Unprocessable("no retry can help")


async def hang(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    await asyncio.sleep(60)


async def lose_the_connection(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    if any(claimed.event.name == "bad" for claimed in events):
        await (await uow.session.connection()).exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


async def bury_all(engine: Processor[UnitOfWork], database: Database) -> None:
    for _ in range(100):
        try:
            await engine.run_once()
        except DBAPIError:
            continue
        if await rows(database, "SELECT 1 FROM dead_letters"):
            return
    raise AssertionError("nothing died")


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (refuse, FailureReason.handler_error),
        (give_up, FailureReason.unreadable),
        (hang, FailureReason.time_limit),
    ],
)
async def test_a_dead_letter_keeps_why_its_last_attempt_failed(
    ticking: Database, handler: Any, reason: FailureReason
) -> None:
    await append(ticking, Tick(name="a"))
    await bury_all(strict(ticking, handler, time_limit=0.2), ticking)
    assert await rows(ticking, REASONS) == [("tick/a", reason, reason)]


async def test_an_event_that_costs_each_transaction_its_connection_was_found_by_bisection(ticking: Database) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "b", "bad", "c")))
    await bury_all(strict(ticking, lose_the_connection), ticking)
    assert await rows(ticking, REASONS) == [("tick/bad", "bisected", "bisected")]


async def test_an_event_that_used_up_its_attempts_by_killing_workers_says_so(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    await rows(ticking, "UPDATE outbox SET waits = 'begun', attempts = 1, available_at = now()")
    await bury_all(strict(ticking, TickHandler()), ticking)
    assert await rows(ticking, REASONS) == [("tick/a", "worker_died", "worker_died")]


@pytest.mark.parametrize(
    ("waits", "failures", "reason"),
    [
        ("asked", None, "buried"),
        ("unknown", None, "unknown_version"),
        ("begun", None, "worker_died"),
        ("retry", '[{"error": "no", "fingerprint": "x", "reason": "time_limit"}]', "time_limit"),
        ("retry", '[{"error": "no", "fingerprint": "x"}]', None),
    ],
    ids=["deferred", "unknown", "begun", "failed", "failed under the release before"],
)
async def test_what_an_operator_buries_keeps_the_reason_for_which_it_waited(
    ticking: Database, waits: str, failures: str | None, reason: str | None
) -> None:
    await append(ticking, Tick(name="a"))
    (position,) = await rows(
        ticking,
        "UPDATE outbox SET waits = :waits, failures = CAST(:failures AS jsonb), available_at = now()"
        " RETURNING position",
        waits=waits,
        failures=failures,
    )
    async with UnitOfWork(ticking.write) as uow:
        await control.bury_waiting(uow, position, By("ops"))
        await uow.commit()
    assert await rows(ticking, "SELECT reason FROM dead_letters") == [reason]


async def test_a_replayed_event_that_fails_again_has_its_new_reason(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    await bury_all(strict(ticking, refuse), ticking)
    async with UnitOfWork(ticking.write) as uow:
        (one,) = await control.heads(uow, Selection(type="test.tick"), 0, 1)
        await control.replay(uow, Selection(position=one.position), By("ops"))
        await uow.commit()
    await drain(processor(ticking, refuse, retry=LATER))
    await rows(ticking, "UPDATE outbox SET available_at = now()")
    await bury_all(strict(ticking, give_up), ticking)
    assert await rows(ticking, "SELECT reason, jsonb_path_query_array(failures, '$[*].reason') FROM dead_letters") == [
        ("unreadable", ["handler_error", "handler_error", "unreadable"])
    ]
