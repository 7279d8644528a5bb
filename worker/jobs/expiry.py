"""Scheduled expiry of holds, and of orders that have waited too long for payment or a worker."""

import logging
from typing import Any

from services.credits.holds.service import HOLDS
from services.orders.expiry.service import HELD, UNPAID
from worker.context import WorkerContext
from worker.jobs.sweeping import run_sweeps

logger = logging.getLogger(__name__)

_A_TRANSACTION = 200


async def expire(ctx: dict[str, Any]) -> None:
    """Cancel orders and expire holds whose time is up, one transaction per slice.

    Locked rows are skipped; the next run, a minute later, tries them again. A row that the database refuses to change
    is left out, recorded in `sweep_failures` and retried later.
    """
    worker: WorkerContext = ctx["worker"]
    ended = await run_sweeps(worker.open_unit_of_work, (UNPAID, HELD, HOLDS), slice_size=_A_TRANSACTION)
    if any(ended.values()):
        logger.info("expired", extra=ended)
