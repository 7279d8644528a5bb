"""Scheduled reports to the log."""

import logging
from typing import Any

from worker.context import WorkerContext

logger = logging.getLogger(__name__)


async def report_backlog(ctx: dict[str, Any]) -> None:
    """Say what waits in the outbox and what failed for good."""
    worker: WorkerContext = ctx["worker"]
    async with worker.open_unit_of_work() as uow:
        backlog = await uow.control.backlog()
    logger.info("backlog", extra=backlog)
