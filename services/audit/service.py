"""Audits: recompute everything, and say what differs."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from services.audit.schemas import AuditResult, Difference
from services.fields import now
from services.sql import CONTENTION, sqlstate
from services.unit_of_work import UnitOfWork

_QUERY_CANCELED = "57014"


class AuditNotFinished(Exception):
    """Nobody knows whether everything agrees: the audit was given up. The message says why and what to do."""


async def audit(uow: UnitOfWork, time_limit: float, tell: Callable[[Difference], None]) -> AuditResult:
    """Recompute balances, transfers, orders, stock and outbox in one snapshot, and tell each difference as it is found.

    `uow` must be fresh. It may read a replica: what is replayed there is a state that the primary was in. `time_limit`
    (seconds) bounds how long the snapshot is held. Raises `AuditNotFinished` where it does not suffice, or the database
    does not let the audit come to its end.
    """
    started_at, started = now(), time.monotonic()
    differences = 0
    try:
        async with asyncio.timeout(time_limit):
            await uow.audits.begin(time_limit)
            rows = await uow.audits.count_rows()
            async for difference in uow.audits.differences():
                differences += 1
                tell(difference)
    except TimeoutError as error:
        raise _too_long(time_limit) from error
    except DBAPIError as error:
        if sqlstate(error) == _QUERY_CANCELED:
            raise _too_long(time_limit) from error
        if sqlstate(error) in CONTENTION:
            raise AuditNotFinished(
                "the replica ended the audit to go on replaying; set max_standby_streaming_delay there to more than "
                "an audit takes"
            ) from error
        if error.connection_invalidated:
            raise AuditNotFinished(
                f"the database ended the session in the middle of the audit: {error.orig}"
            ) from error
        raise
    return AuditResult(started_at, time.monotonic() - started, rows, differences)


def _too_long(time_limit: float) -> AuditNotFinished:
    return AuditNotFinished(
        f"the audit was given up after {time_limit:g} s; give it more time with WAYBILL_AUDIT_TIME_LIMIT, "
        "or let it read a replica (WAYBILL_DATABASE_REPLICA_URL)"
    )
