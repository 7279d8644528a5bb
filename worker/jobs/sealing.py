"""The job that seals the audit log."""

import logging
from typing import Any

from services.audit.log import service
from services.unit_of_work import background
from worker.context import WorkerContext

logger = logging.getLogger(__name__)


async def seal_audit_log(ctx: dict[str, Any]) -> None:
    """Give new rows of the audit log their places in the chain, and log its head.

    A head in the log, which leaves this machine, tells later whether the end of the audit log was cut off, even if the
    head in the database was changed as well (`waybill ledger audit --head`).
    """
    worker: WorkerContext = ctx["worker"]
    more = True
    while more:
        async with background(worker.open_unit_of_work) as uow:
            sealed, head = await service.seal(uow)
        if sealed:
            logger.info("audit log sealed", extra={"rows": sealed, "head": str(head)})
        more = sealed == service.AT_ONCE
