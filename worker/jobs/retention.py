"""Scheduled upkeep: partitions of the log are made ahead and dropped behind; keys and lost workers leave in time."""

import asyncio
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.outbox import retention
from services.outbox.export import export
from services.outbox.partitions import ensure_partitions
from services.outbox.retention import Needed, Partition
from services.skew import database_time
from services.sql import sqlstate
from worker.context import WorkerContext

logger = structlog.get_logger(__name__)

_MONTHS_AHEAD = 3
_KEYS_PER_TRANSACTION = 5000

_DROP_ATTEMPTS = 20
_DROP_PAUSE = 0.5
"""Seconds between two tries to drop a partition, on average: the log's writers catch up meanwhile."""

_LOCK_NOT_AVAILABLE = "55P03"
_UNDEFINED_TABLE = "42P01"


async def ensure_event_partitions(ctx: dict[str, Any]) -> None:
    """Make the event log's partitions for this month and the next three."""
    worker: WorkerContext = ctx["worker"]
    async with worker.database.engine.begin() as connection:
        made = await ensure_partitions(connection, _MONTHS_AHEAD, (await database_time(connection)).date())
    if made:
        logger.info("event partitions made", partitions=made)


async def drop_expired_events(ctx: dict[str, Any]) -> None:
    """Export, if a folder is set, and drop the event log's months that are older than the retention."""
    settings, engine = ctx["worker"].settings, ctx["worker"].database.engine
    if settings.event_retention_days:
        async with engine.connect() as connection:
            before = await database_time(connection) - timedelta(days=settings.event_retention_days)
        await forget_events(engine, before, settings.event_export_path)


async def forget_events(engine: AsyncEngine, before: datetime, export_path: Path | None) -> list[str]:
    """Drop the months that ended before that moment, but for what is still needed; the names of the dropped partitions.

    Safe to stop anywhere and to repeat, also at once with another. Raises `ExportFailed`, with the month still there.
    """
    async with engine.begin() as connection:
        await retention.give_strays_a_partition(connection, before)
    async with engine.connect() as connection:
        expired = await retention.expired(connection, before)
    dropped = []
    for partition in expired:
        try:
            if await _forget(engine, partition, export_path):
                dropped.append(partition.name)
        except DBAPIError as error:
            # Another run was quicker.
            if sqlstate(error) != _UNDEFINED_TABLE:
                raise
    return dropped


async def _forget(engine: AsyncEngine, partition: Partition, export_path: Path | None) -> bool:
    # Asked before the export as well, which is long.
    async with engine.connect() as connection:
        reasons = await retention.needed(connection, partition)
    exported = None
    if not reasons:
        exported = await export(engine, partition, export_path) if export_path else None
        reasons = await _drop(engine, partition, exported.events if exported else None)
    if reasons:
        logger.warning("event partition kept beyond its time", partition=partition.name, needed=str(reasons))
        return False
    logger.info("event partition dropped", partition=partition.name, export=str(exported.path) if exported else None)
    return True


async def _drop(engine: AsyncEngine, partition: Partition, exported: int | None) -> Needed:
    """Drop it in a moment in which the log is free; raises where there is none."""
    for attempt in range(1, _DROP_ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                return await retention.drop(connection, partition, exported)
        except DBAPIError as error:
            if sqlstate(error) != _LOCK_NOT_AVAILABLE or attempt == _DROP_ATTEMPTS:
                raise
        await asyncio.sleep(_DROP_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311
    raise AssertionError("the last attempt returns or raises")


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
