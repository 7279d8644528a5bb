"""Runs the audit's checks and stores what they found."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlmodel import col, select

from services.audit import queries
from services.audit.models import LedgerAudit
from services.audit.schemas import AuditResult, Difference
from services.sql import SqlAccess, Statement


class AuditRepository(SqlAccess):
    """The differences that an audit finds, and the results of finished audits."""

    async def begin(self, time_limit: float) -> None:
        """Begin the transaction, which must be fresh, with a single snapshot and a limit on each statement."""
        await self.sql.run(queries.SNAPSHOT)
        await self.sql.fetch(queries.SETTINGS, milliseconds=str(int(time_limit * 1000)))

    async def count_rows(self) -> int:
        """The number of rows that the checks read."""
        return int((await self.sql.fetch(queries.ROWS))[0]["rows"])

    async def differences(self, checks: Sequence[Statement]) -> AsyncIterator[Difference]:
        """What these checks find, with a few hundred rows in memory at a time."""
        for statement in checks:
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

    async def latest(self, *, good: bool = False) -> LedgerAudit | None:
        """The audit that started last, of the finished ones or, if `good`, of those that found no difference."""
        newest = select(LedgerAudit).order_by(col(LedgerAudit.started_at).desc()).limit(1)
        if good:
            newest = newest.where(col(LedgerAudit.differences) == 0)
        return (await self.session.exec(newest)).one_or_none()

    async def books(self) -> dict[str, Any]:
        """Sums and counts over the whole ledger and stock, in one snapshot; a full scan, which may take a minute."""
        await self.sql.fetch(queries.TAKE_TIME)
        return dict((await self.sql.fetch(queries.BOOKS))[0])
