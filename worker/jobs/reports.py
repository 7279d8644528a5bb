"""Scheduled reports to the log."""

from typing import Any

import structlog

from worker.context import WorkerContext

logger = structlog.get_logger(__name__)


async def report_backlog(ctx: dict[str, Any]) -> None:
    """Say what waits in the outbox and what failed for good."""
    worker: WorkerContext = ctx["worker"]
    async with worker.open_unit_of_work() as uow:
        backlog = await uow.control.backlog()
    logger.info("backlog", **backlog)
