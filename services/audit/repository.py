"""Runs the audit's checks and keeps what they found."""

import json
from collections.abc import AsyncIterator

from sqlmodel import col, select

from services.audit import queries
from services.audit.models import LedgerAudit
from services.audit.schemas import AuditResult, Difference
from services.sql import SqlAccess


class AuditRepository(SqlAccess):
    """What does not agree, and what audits have found so far."""

    async def begin(self, time_limit: float) -> None:
        """Make the transaction, which must not have begun, read one snapshot, and each statement end in time."""
        await self.sql.run(queries.SNAPSHOT)
        await self.sql.fetch(queries.SETTINGS, milliseconds=str(int(time_limit * 1000)))

    async def count_rows(self) -> int:
        """Rows that the statements look at."""
        return int((await self.sql.fetch(queries.ROWS))[0]["rows"])

    async def differences(self) -> AsyncIterator[Difference]:
        """Everything that does not agree, a few hundred rows in memory at a time."""
        for statement in queries.CHECKS:
            async for row in self.sql.stream(statement):
                yield Difference.from_row(row)

    async def keep(self, result: AuditResult, sample: list[Difference]) -> None:
        await self.sql.run(
            queries.KEEP,
            started_at=result.started_at,
            seconds=result.seconds,
            rows_checked=result.rows_checked,
            differences=result.differences,
            sample=json.dumps([difference.as_json() for difference in sample]),
        )

    async def latest(self) -> LedgerAudit | None:
        """The audit that began last."""
        newest = select(LedgerAudit).order_by(col(LedgerAudit.started_at).desc()).limit(1)
        return (await self.session.exec(newest)).one_or_none()
