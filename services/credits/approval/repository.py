"""All SQL about movements that no one approved."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.credits.approval import queries
from services.credits.approval.rules import Sums
from services.credits.ledger.rules import Movement
from services.sql import SqlAccess, Write


@dataclass(frozen=True, slots=True)
class Record:
    """What was done without approval within the window, and to whom the accounts belong."""

    sums: Sums
    owners: Mapping[int, int]
    """The user of each account, by the account's id; system accounts have none."""


class ApprovalRepository(SqlAccess):
    """Movements that no one approved."""

    async def lock(self, operator_id: int, account_ids: Collection[int], window: timedelta) -> Record:
        """Lock the operator and the accounts for movements without approval until the transaction ends; read the sums.

        Locks of rows of stock, transfers and accounts come after these, those of orders before.
        """
        names = [f"operator {operator_id}", *(f"account {account_id}" for account_id in sorted(account_ids))]
        await self.sql.fetch(queries.LOCK, names=names)
        rows = await self.sql.fetch(queries.SUMS, operator_id=operator_id, account_ids=list(account_ids), window=window)
        return Record(
            sums=Sums(rows[0]["by_operator"], {row["account_id"]: row["on_account"] for row in rows}),
            owners={row["account_id"]: row["user_id"] for row in rows},
        )

    async def owners(self, account_id: int, reverses: UUID | None) -> set[int]:
        """The users whose credits a pending adjustment concerns: that of the account, and those of what it reverses."""
        rows = await self.sql.fetch(queries.OWNERS, account_id=account_id, reverses=reverses)
        return {row["user_id"] for row in rows}

    @staticmethod
    def recording(operator_id: int, movements: Sequence[Movement]) -> Write:
        """Record that the operator makes these movements without approval. The caller holds the locks."""
        parameters = {
            "operator_id": operator_id,
            "ids": [one.transfer_id for one in movements],
            "debits": [one.debit_account_id for one in movements],
            "credits": [one.credit_account_id for one in movements],
            "amounts": [one.amount for one in movements],
        }
        return Write(queries.RECORD, parameters, wanted=len(movements))
