"""All SQL of transfers between users. The ledger writes them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.credits.ledger.rules import Balance, Movement
from services.credits.models import TransferKind, TransferState
from services.credits.transfers import queries
from services.sql import SqlAccess


class TransferRepository(SqlAccess):
    """Transfers between users."""

    async def parties(self, sender_id: int, recipient_ids: Iterable[int], *, lock: bool) -> "Parties":
        """The users' accounts; locked, in the order of their ids, until the transaction ends, or only read."""
        statement = queries.LOCK_PARTIES if lock else queries.READ_PARTIES
        rows = await self.sql.fetch(statement, user_ids=list({sender_id, *recipient_ids}))
        balances = {
            row["user_id"]: Balance.from_row(row)
            for row in rows
            # Who was deleted or deactivated is as unknown as who never was; the sender has signed in a moment ago.
            if row["is_known"] or row["user_id"] == sender_id
        }
        return Parties(balances[sender_id], balances, rows[0]["at"])

    async def find(self, transfer_id: UUID, *, lock: bool = False) -> "TransferRow | None":
        """The transfer, if there is one; `lock` takes the row and its accounts until the transaction ends."""
        if lock:
            # A statement of its own: the one after it sees what whoever held the lock has committed.
            await self.sql.fetch(queries.LOCK, id=transfer_id)
        rows = await self.sql.fetch(queries.GET, id=transfer_id)
        return TransferRow.from_row(rows[0]) if rows else None


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A transfer with the users on both sides of it; None where a system account is."""

    id: UUID
    kind: TransferKind
    state: TransferState
    amount: Decimal
    posted_amount: Decimal | None
    debit_account_id: int
    credit_account_id: int
    order_id: UUID | None
    reverses: UUID | None
    note: str
    created_at: datetime
    expires_at: datetime | None
    resolved_at: datetime | None
    from_user_id: int | None
    to_user_id: int | None
    is_due: bool
    """Its time to be posted is over, swept or not."""
    reversed_by: UUID | None

    @classmethod
    def from_row(cls, row: Any) -> "TransferRow":
        return cls(**{**row, "kind": TransferKind(row["kind"]), "state": TransferState(row["state"])})

    def movement(self) -> Movement:
        return Movement(self.id, self.debit_account_id, self.credit_account_id, self.amount, self.order_id)


@dataclass(frozen=True, slots=True)
class Parties:
    """The accounts that transfers are about, by user. Of the recipients, unknown ones are missing."""

    sender: Balance
    recipients: Mapping[int, Balance]
    at: datetime
    """The transaction's time, which the transfers get."""
