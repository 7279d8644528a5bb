"""What a worker counts for Prometheus: only what was committed, by type and reason."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import IntegrityError

from services.database import Database
from services.outbox import metrics
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Locked, Unprocessable
from services.outbox.models import FailureReason
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.test_processor_batches import FailingCommit
from tests.concurrency.ticks import SOON, Tick, TickHandler, append, damage, processor


def counted(name: str, **labels: str) -> float:
    """The value of one sample of ticks; 0 if there is none."""
    return metrics.registry.get_sample_value(name, {"type": "test.tick", **labels}) or 0.0


def failed(reason: FailureReason) -> float:
    return counted("waybill_events_failed_total", reason=reason.value)


async def test_processed_events_and_their_queue_time_are_counted(ticking: Database) -> None:
    await append(ticking, *[Tick(name=f"{number}") for number in range(20)])
    before = counted("waybill_events_processed_total"), counted("waybill_event_queue_seconds_count")
    total, calls = counted("waybill_event_queue_seconds_sum"), counted("waybill_handler_duration_seconds_count")
    assert (await processor(ticking).run_once()).processed == 20
    assert counted("waybill_events_processed_total") == before[0] + 20
    assert counted("waybill_event_queue_seconds_count") == before[1] + 20
    assert 0 < counted("waybill_event_queue_seconds_sum") - total < 20 * 60
    assert counted("waybill_handler_duration_seconds_count") == calls + 1


async def test_of_a_large_batch_the_queue_time_is_a_weighted_sample(ticking: Database) -> None:
    await append(ticking, *[Tick(name=f"{number}") for number in range(330)])
    before = counted("waybill_event_queue_seconds_count")
    assert (await processor(ticking, batch_size=400).run_once()).processed == 330
    assert counted("waybill_event_queue_seconds_count") == before + 330


async def test_what_is_rolled_back_is_not_counted(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    before = counted("waybill_events_processed_total")
    failing = Processor[UnitOfWork](
        lambda: FailingCommit(ticking.write), [Subscription(Tick, TickHandler())], retry=SOON, batch_size=10
    )
    with pytest.raises(IntegrityError):
        await failing.run_once()
    assert counted("waybill_events_processed_total") == before


@pytest.mark.parametrize(
    ("error", "reason", "retried", "buried"),
    [
        (ValueError("poison"), FailureReason.handler_error, 1, 0),
        (Unprocessable("no retry can help"), FailureReason.unreadable, 0, 1),
        (Locked("in use"), FailureReason.locked, 0, 0),
    ],
)
async def test_failures_are_counted_by_reason(
    ticking: Database, error: Exception, reason: FailureReason, retried: int, buried: int
) -> None:
    await append(ticking, Tick(name="a"))
    before = failed(reason), counted("waybill_events_retried_total"), counted("waybill_events_buried_total")

    async def fail(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> list[Exception | None]:
        return [error for _ in events]

    await processor(ticking, fail).run_once()
    after = failed(reason), counted("waybill_events_retried_total"), counted("waybill_events_buried_total")
    assert after == (before[0] + 1, before[1] + retried, before[2] + buried)


async def test_an_event_that_takes_too_long_fails_by_its_time_limit(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    before, dead = failed(FailureReason.time_limit), counted("waybill_events_buried_total")

    async def hang(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await asyncio.sleep(60)

    slow = Processor[UnitOfWork](
        lambda: UnitOfWork(ticking.write),
        [Subscription(Tick, hang)],
        retry=RetryPolicy(1, 1.0, 1.0),
        batch_size=10,
        time_limit=0.2,
    )
    while not (await slow.run_once()).buried:
        pass
    assert failed(FailureReason.time_limit) == before + 1
    assert counted("waybill_events_buried_total") == dead + 1


async def test_an_event_of_an_unknown_version_is_neither_a_retry_nor_dead(ticking: Database) -> None:
    await append(ticking, Tick(name="a"))
    await damage(ticking, "UPDATE events SET version = 9")
    before, again = failed(FailureReason.unknown_version), counted("waybill_events_retried_total")
    await processor(ticking).run_once()
    assert failed(FailureReason.unknown_version) == before + 1
    assert counted("waybill_events_retried_total") == again
