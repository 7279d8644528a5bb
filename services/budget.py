"""The connection budget: what all processes may open together, compared with what a server allows."""

import logging
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from services.connections import driver_of
from services.replica import Replica
from services.settings import Settings

logger = logging.getLogger(__name__)

PROBE_CONNECTIONS = 2
"""Connections of an API process in addition to its pool: one for short checks and one for a concurrent scrape."""


@dataclass(frozen=True, slots=True)
class PoolBudget:
    """Connections that all processes may open together, compared with what the server allows."""

    per_process: int
    processes: int
    beside: int
    """Connections outside the pools: for poll loops and probes, to watch a replica, and to an analytics database on the
    same server."""
    available: int

    @property
    def wanted(self) -> int:
        """Connections if every pool is full."""
        return self.per_process * self.processes + self.beside

    @property
    def fits(self) -> bool:
        return self.wanted <= self.available

    def describe(self) -> str:
        return (
            f"{self.processes} processes x {self.per_process} connections (pool size + overflow) + {self.beside} for "
            f"poll loops, probes, replica checks and reports = {self.wanted}; the server allows {self.available} "
            "(max_connections minus reserved ones)"
        )


async def check_pool_budget(engine: AsyncEngine, settings: Settings) -> PoolBudget:
    """Compare the pools' budget with the server's limit; log a warning if it does not fit and there is no pooler."""
    return _warned(*await measure_pool_budget(engine, settings), "PostgreSQL")


async def measure_pool_budget(
    engine: AsyncEngine, settings: Settings, workers_alive: int = 0
) -> tuple[PoolBudget, bool]:
    """The pools' budget, and whether there is a pooler in between, so that the server's limit does not matter.

    If more workers are alive than the settings say, those are counted.
    """
    if workers_alive > settings.worker_processes:
        settings = settings.model_copy(update={"worker_processes": workers_alive})
    processes = settings.api_processes + settings.worker_processes
    beside = (
        settings.worker_processes * settings.polling_connections
        + settings.api_processes * PROBE_CONNECTIONS
        + settings.analytics_connections
    )
    if settings.database_replica_url is not None:
        # Each process asks for the primary's position over a connection of its own.
        beside += processes
    return await _measure(engine, settings, beside)


async def check_replica_budget(replica: Replica, settings: Settings) -> PoolBudget | None:
    """The same for the replica; None if it is not in use. Each process has one connection there besides its pool."""
    if not replica.is_fit:
        return None
    processes = settings.api_processes + settings.worker_processes
    try:
        return _warned(*await _measure(replica.engine, settings, processes), "the read replica")
    except (DBAPIError, PoolTimeout, OSError):
        return None


async def _measure(engine: AsyncEngine, settings: Settings, beside: int) -> tuple[PoolBudget, bool]:
    statement = text(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0)"
    )
    async with engine.connect() as connection:
        available = int((await connection.execute(statement)).scalar_one())
        driver = await driver_of(connection)
    budget = PoolBudget(
        per_process=settings.database_pool_size + settings.database_max_overflow,
        processes=settings.api_processes + settings.worker_processes,
        beside=beside,
        available=available,
    )
    return budget, driver.is_pooled


def _warned(budget: PoolBudget, is_pooled: bool, server: str) -> PoolBudget:
    if not (budget.fits or is_pooled):
        logger.warning(
            "connection pools may exhaust %s: %s. Lower WAYBILL_DATABASE_POOL_SIZE or "
            "WAYBILL_DATABASE_MAX_OVERFLOW, or raise max_connections",
            server,
            budget.describe(),
        )
    return budget
