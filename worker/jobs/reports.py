"""Scheduled log reports."""

import logging
from typing import Any

from worker.context import WorkerContext

logger = logging.getLogger(__name__)


async def report_backlog(ctx: dict[str, Any]) -> None:
    """Log how many events are waiting in the outbox and how many are dead."""
    worker: WorkerContext = ctx["worker"]
    async with worker.open_unit_of_work() as uow:
        backlog = await uow.control.backlog()
    logger.info("backlog", extra=backlog)
