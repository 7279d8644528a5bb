"""Audits: recompute everything, and report what differs."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from services.audit.acknowledged import queries as acknowledged
from services.audit.log import queries as log
from services.audit.log.schemas import Head
from services.audit.logged import queries as logged
from services.audit.queries import CHECKS as OF_TABLES
from services.audit.schemas import AuditResult, Difference
from services.fields import now
from services.sql import CONTENTION, sqlstate
from services.unit_of_work import UnitOfWork

CHECKS = (*OF_TABLES, *logged.CHECKS, *acknowledged.CHECKS, *log.CHECKS)
"""All checks of an audit, in their order."""

_QUERY_CANCELED = "57014"


class AuditNotFinished(Exception):
    """The audit was stopped before it had checked everything. The message says why and what to do."""


async def audit(
    uow: UnitOfWork, time_limit: float, tell: Callable[[Difference], None], noted: Head | None = None
) -> AuditResult:
    """Recompute balances, transfers, orders, stock and outbox in one snapshot, and `tell` each difference found.

    `noted` is a head of the audit log that was noted elsewhere: what was sealed up to there must still be the same.

    `uow` must be fresh. It may read a replica: every state there is one that the primary was in. `time_limit` (seconds)
    bounds how long the snapshot is held. Raises `AuditNotFinished` if that is too short, or if the database ends the
    audit.
    """
    started_at, started = now(), time.monotonic()
    differences = 0
    try:
        async with asyncio.timeout(time_limit):
            await uow.audits.begin(time_limit)
            rows = await uow.audits.count_rows()
            async for difference in uow.audits.differences(CHECKS):
                differences += 1
                tell(difference)
            for difference in [] if noted is None else await uow.audit_log.cut_after(noted):
                differences += 1
                tell(difference)
    except TimeoutError as error:
        raise _too_long(time_limit) from error
    except DBAPIError as error:
        if sqlstate(error) == _QUERY_CANCELED:
            raise _too_long(time_limit) from error
        if sqlstate(error) in CONTENTION:
            raise AuditNotFinished(
                "the replica cancelled the audit to continue replaying; set max_standby_streaming_delay there to more "
                "than an audit takes"
            ) from error
        if error.connection_invalidated:
            raise AuditNotFinished(f"the database ended the session during the audit: {error.orig}") from error
        raise
    return AuditResult(started_at, time.monotonic() - started, rows, differences)


def _too_long(time_limit: float) -> AuditNotFinished:
    return AuditNotFinished(
        f"the audit was stopped after {time_limit:g} s; raise WAYBILL_AUDIT_TIME_LIMIT, "
        "or let it read a replica (WAYBILL_DATABASE_REPLICA_URL)"
    )
