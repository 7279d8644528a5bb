"""Scheduled upkeep: create partitions of the event log ahead, drop expired ones, delete old keys and lost workers."""

import logging
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.idempotency.repository import OldKey
from services.outbox.archive.service import export
from services.outbox.retention import service as retention
from services.outbox.retention.repository import (
    MONTHS_AHEAD,
    add_partitions,
    ensure_partitions,
    months_from,
    partition_name,
)
from services.outbox.retention.service import Partition
from services.skew import database_time
from services.sql import LOCK_NOT_AVAILABLE, sqlstate
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.attempts.service import FORGOTTEN_ATTEMPTS
from services.users.keys.service import ended_keys
from services.users.registration.service import EXPIRED_EMAILS
from services.users.sessions.service import expired_sessions
from worker.context import WorkerContext
from worker.jobs.sweeping import raise_all, run_sweeps

logger = logging.getLogger(__name__)

_KEYS_PER_TRANSACTION = 2000
_WORKERS_PER_TRANSACTION = 200
_SESSIONS_PER_TRANSACTION = 200

_LONGEST_PRUNING = 240.0
"""Seconds after which pruning stops; the next run, an hour later, continues."""

_SOON = timedelta(days=14)
"""How long before its month a partition must exist: until then, a log that is in use is not an error."""

_UNDEFINED_TABLE = "42P01"


async def ensure_event_partitions(ctx: dict[str, Any]) -> None:
    """Create the event log's partitions for this month and the next three.

    Each is created separately: one that fails does not stop the others. Errors are raised afterwards. If another
    session keeps the log locked, such as a backup, months that begin in more than two weeks are left to a later run.
    """
    worker: WorkerContext = ctx["worker"]
    engine = worker.database.engine
    async with engine.connect() as connection:
        today = (await database_time(connection)).date()
    made: list[str] = []
    errors: list[Exception] = []
    for year, month in months_from(today, MONTHS_AHEAD):
        first = date(year, month, 1)
        try:
            made += await retention.patiently(engine, partial(_add_month, first=first))
        except Exception as error:  # noqa: BLE001
            problem = {"partition": partition_name(year, month), "error": error}
            if first > today + _SOON and isinstance(error, DBAPIError) and sqlstate(error) == LOCK_NOT_AVAILABLE:
                logger.warning("event partition not created yet: the log is in use", extra=problem)
                continue
            logger.error("event partition not created", extra=problem)
            errors.append(error)
    if made:
        logger.info("event partitions created", extra={"partitions": made})
    raise_all(errors, "several event partitions could not be created")


async def _add_month(connection: AsyncConnection, first: date) -> list[str]:
    return await ensure_partitions(connection, 0, first)


async def drop_expired_events(ctx: dict[str, Any]) -> None:
    """Drop the event log's months that are older than the retention; export them first if a folder is set."""
    settings, engine = ctx["worker"].settings, ctx["worker"].database.engine
    if settings.event_retention_days:
        async with engine.connect() as connection:
            before = await database_time(connection) - timedelta(days=settings.event_retention_days)
        await forget_events(engine, before, settings.event_export_path)


async def forget_events(engine: AsyncEngine, before: datetime, export_path: Path | None) -> list[str]:
    """Drop months that ended before that time, except those still needed; returns the dropped partitions' names.

    Safe to stop at any point, to repeat, and to run twice at the same time. A month that cannot be moved, exported or
    dropped stays, and the others are dropped; its error (`ExportFailed`, `DBAPIError`) is raised afterwards, several as
    an `ExceptionGroup`.
    """
    errors = await _give_strays_a_partition(engine, before)
    async with engine.connect() as connection:
        expired = await retention.expired(connection, before)
    dropped = []
    for partition in expired:
        try:
            if await _forget(engine, partition, export_path):
                dropped.append(partition.name)
        except Exception as error:  # noqa: BLE001
            # Another run has already dropped it.
            if isinstance(error, DBAPIError) and sqlstate(error) == _UNDEFINED_TABLE:
                continue
            logger.error("event partition not dropped", extra={"partition": partition.name, "error": error})
            errors.append(error)
    raise_all(errors, "several months of events could not be dropped")
    return dropped


async def _give_strays_a_partition(engine: AsyncEngine, before: datetime) -> list[Exception]:
    """Move events of expired months out of the default partition; returns the errors of months that failed."""
    errors: list[Exception] = []
    async with engine.connect() as connection:
        months = await retention.stray_months(connection, before)
    for month in months:
        try:
            # Locks out the log's writers while the events move.
            await retention.patiently(engine, partial(add_partitions, months=[month]))
        except Exception as error:  # noqa: BLE001
            logger.error("event partition not created", extra={"partition": partition_name(*month), "error": error})
            errors.append(error)
    return errors


async def _forget(engine: AsyncEngine, partition: Partition, export_path: Path | None) -> bool:
    # Also checked before the export, which takes long.
    async with engine.connect() as connection:
        reasons = await retention.needed(connection, partition)
    exported = None
    if not reasons:
        exported = await export(engine, partition, export_path) if export_path else None
        held = exported.events if exported else None
        reasons = await retention.patiently(engine, partial(retention.drop, partition=partition, exported=held))
    if reasons:
        logger.warning(
            "event partition kept beyond its retention", extra={"partition": partition.name, "needed": str(reasons)}
        )
        return False
    logger.info(
        "event partition dropped",
        extra={"partition": partition.name, "export": str(exported.path) if exported else None},
    )
    return True


async def prune_idempotency_keys(ctx: dict[str, Any]) -> None:
    """Delete keys older than the retention, one transaction per slice."""
    worker: WorkerContext = ctx["worker"]
    sweep = old_keys(timedelta(seconds=worker.settings.idempotency_retention))
    await run_sweeps(worker.open_unit_of_work, [sweep], slice_size=_KEYS_PER_TRANSACTION, longest=_LONGEST_PRUNING)


def old_keys(retention: timedelta) -> Sweep[OldKey]:
    """Idempotency keys that have expired."""

    async def find(uow: UnitOfWork, after: OldKey | None, limit: int) -> list[OldKey]:
        return await uow.idempotency.old(retention, after, limit)

    async def delete(uow: UnitOfWork, keys: Sequence[OldKey]) -> list[str]:
        return [key.subject for key in await uow.idempotency.delete_old(retention, keys)]

    return Sweep("idempotency_keys", find, delete)


async def prune_sessions(ctx: dict[str, Any]) -> None:
    """Delete what has ended long enough ago: sessions, API keys, failed attempts, and unconfirmed addresses."""
    worker: WorkerContext = ctx["worker"]
    sweeps: list[Sweep[Any]] = [
        expired_sessions(timedelta(seconds=worker.settings.session_retention)),
        ended_keys(timedelta(seconds=worker.settings.api_key_retention)),
        FORGOTTEN_ATTEMPTS,
        EXPIRED_EMAILS,
    ]
    await run_sweeps(worker.open_unit_of_work, sweeps, slice_size=_SESSIONS_PER_TRANSACTION, longest=_LONGEST_PRUNING)


async def forget_workers(ctx: dict[str, Any]) -> None:
    """Delete the rows of workers that have not been heard from for a day."""
    worker: WorkerContext = ctx["worker"]
    ended = await run_sweeps(worker.open_unit_of_work, [LOST_WORKERS], slice_size=_WORKERS_PER_TRANSACTION)
    if ended[LOST_WORKERS.name]:
        logger.info("workers forgotten", extra={"workers": ended[LOST_WORKERS.name]})


class LostWorker(NamedTuple):
    """A worker that has not been heard from for a day."""

    worker_id: UUID

    @property
    def subject(self) -> str:
        return str(self.worker_id)


async def _find_lost(uow: UnitOfWork, after: LostWorker | None, limit: int) -> list[LostWorker]:
    return [LostWorker(one) for one in await uow.control.lost_workers(after.worker_id if after else None, limit)]


async def _forget_lost(uow: UnitOfWork, lost: Sequence[LostWorker]) -> list[str]:
    return [str(one) for one in await uow.control.forget_workers([worker.worker_id for worker in lost])]


LOST_WORKERS: Sweep[LostWorker] = Sweep("lost_workers", _find_lost, _forget_lost)
"""Rows of workers that died without deleting theirs."""
