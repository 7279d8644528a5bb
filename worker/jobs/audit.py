"""The scheduled audit: recompute everything, and store the result for every process to show."""

import logging
from collections import Counter
from typing import Any

from services.audit.schemas import Difference, DifferenceKind
from services.audit.service import AuditNotFinished, audit
from services.unit_of_work import UnitOfWork, background
from worker.context import WorkerContext

logger = logging.getLogger(__name__)

_SAMPLE_OF_A_KIND = 5


async def audit_ledger(ctx: dict[str, Any]) -> None:
    """Audit the replica if there is one, else the primary; log the result and store it.

    An audit that does not finish only logs an error; the age of the last finished one shows it, too.
    """
    worker: WorkerContext = ctx["worker"]
    found: Counter[DifferenceKind] = Counter()
    sample: list[Difference] = []

    def tell(difference: Difference) -> None:
        found[difference.kind] += 1
        if found[difference.kind] <= _SAMPLE_OF_A_KIND:
            sample.append(difference)

    try:
        async with UnitOfWork(await worker.database.look_and_read()) as uow:
            result = await audit(uow, worker.settings.audit_time_limit, tell)
    except AuditNotFinished as error:
        logger.error("ledger audit not finished", extra={"reason": str(error)})
        return
    async with background(worker.open_unit_of_work) as uow:
        await uow.audits.keep(result, sample)
    write = logger.error if result.differences else logger.info
    write(
        "ledger audit",
        extra={
            "differences": result.differences,
            "kinds": {kind.value: number for kind, number in found.items()},
            "sample": [difference.message for difference in sample[:_SAMPLE_OF_A_KIND]],
            "rows_checked": result.rows_checked,
            "seconds": round(result.seconds, 3),
        },
    )
