"""Dead letters and waiting events of ticks, and workers that run bulk actions on them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from services.acting import acting_as
from services.database import Database
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkAction, BulkKind, BulkState
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control.schemas import By
from services.outbox.subscription import AnySubscription, Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, append, rows
from worker.bulk import BulkRunner

FINGERPRINT = "aaaabbbbccccdddd"

BY = By("an operator", "the cause is gone")

BURY = """
    WITH taken AS (DELETE FROM outbox WHERE type = 'test.tick' RETURNING *)
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures)
    SELECT position, event_id, aggregate, type, 5, 'ValueError: no', :fingerprint, '[]' FROM taken
"""


async def make_letters(database: Database, aggregates: int, each: int, fingerprint: str = FINGERPRINT) -> None:
    """Dead letters of one kind: `each` of every aggregate, mixed."""
    for number in range(each):
        names = [f"n{name}" for name in range(aggregates)]
        for first in range(0, aggregates, 500):
            await append(database, *(Tick(name=name, number=number) for name in names[first : first + 500]))
    await rows(database, BURY, fingerprint=fingerprint)


async def start(database: Database, kind: BulkKind, wanted: BulkFilter, by: By = BY, **more: Any) -> UUID:
    async with UnitOfWork(database.write) as uow:
        action = await bulk.start(uow, kind, wanted, by, **more)
        await uow.commit()
    return action.id


async def seen(database: Database, action_id: UUID) -> BulkAction:
    async with UnitOfWork(database.write) as uow:
        return await bulk.get(uow, action_id)


async def until(database: Database, action_id: UUID, wanted: Callable[[BulkAction], bool]) -> BulkAction:
    """Wait until the action is as wanted; returns it as it is then."""
    for _ in range(600):
        found = await seen(database, action_id)
        if wanted(found):
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"after 60 s, it still is {found!r}")


async def run_chunk(database: Database, subscriptions: Sequence[AnySubscription[UnitOfWork]] = ()) -> bool:
    """What a worker does in one transaction; returns False if no action is due."""
    with acting_as("job:bulk_actions"):
        uow_of_job = UnitOfWork(database.write)
    async with uow_of_job as uow:
        claimed = await uow.bulk.take()
        if claimed is None:
            return False
        await bulk.advance(uow, claimed, subscriptions, uuid4())
        await uow.commit()
    return True


async def run_all(database: Database, subscriptions: Sequence[AnySubscription[UnitOfWork]] = ()) -> int:
    """Chunk after chunk until nothing is left; returns their number."""
    chunks = 0
    while await run_chunk(database, subscriptions):
        chunks += 1
    return chunks


@asynccontextmanager
async def runner(database: Database) -> AsyncIterator[BulkRunner]:
    """The loop of a worker."""
    one = BulkRunner(lambda: UnitOfWork(database.write), [Subscription(Tick, TickHandler())], uuid4())
    one.start()
    try:
        yield one
    finally:
        await one.stop(10)


def counts(action: BulkAction) -> tuple[BulkState, int, int, int]:
    return action.state, action.done, action.failed, action.skipped
