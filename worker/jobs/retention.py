"""Scheduled upkeep: partitions of the event log are made ahead, idempotency keys and lost workers leave in time."""

from datetime import timedelta
from typing import Any

import structlog

from services.fields import now
from services.outbox.partitions import ensure_partitions
from worker.context import WorkerContext

logger = structlog.get_logger(__name__)

_MONTHS_AHEAD = 3
_KEYS_PER_TRANSACTION = 5000


async def ensure_event_partitions(ctx: dict[str, Any]) -> None:
    """Make the event log's partitions for this month and the next three."""
    worker: WorkerContext = ctx["worker"]
    async with worker.database.engine.begin() as connection:
        made = await ensure_partitions(connection, _MONTHS_AHEAD, now().date())
    if made:
        logger.info("event partitions made", partitions=made)


async def prune_idempotency_keys(ctx: dict[str, Any]) -> None:
    """Delete keys older than the retention, a slice a transaction."""
    worker: WorkerContext = ctx["worker"]
    retention = timedelta(seconds=worker.settings.idempotency_retention)
    pruned = _KEYS_PER_TRANSACTION
    while pruned == _KEYS_PER_TRANSACTION:
        async with worker.open_unit_of_work() as uow:
            pruned = await uow.idempotency.prune(retention, _KEYS_PER_TRANSACTION)
            await uow.commit()


async def forget_workers(ctx: dict[str, Any]) -> None:
    """Delete the rows of workers that left without a word a day ago."""
    worker: WorkerContext = ctx["worker"]
    async with worker.open_unit_of_work() as uow:
        forgotten = await uow.control.forget_workers()
        await uow.commit()
    if forgotten:
        logger.info("workers forgotten", workers=forgotten)
