"""All SQL of holds between users, and of single transfers as their parties see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.credits.models import TransferKind, TransferState
from services.credits.planning import Item
from services.credits.repository import Movement
from services.sql import SqlAccess, Statement

# The accounts are locked, so what is written is what was computed from them.
_WRITE = Statement("""
    WITH written AS (
        INSERT INTO transfers
            (id, debit_account_id, credit_account_id, amount, kind, state, note, expires_at)
        VALUES (:id, :debit, :credit, CAST(:amount AS numeric), 'transfer', 'pending', :note, :expires_at)
    )
    UPDATE accounts SET held = held + CAST(:amount AS numeric) WHERE id = :debit
""")

_FIND = """
    SELECT transfers.id, kind, state, amount, posted_amount, debit_account_id, credit_account_id, order_id, reverses,
        note, transfers.created_at, expires_at, resolved_at, payer.user_id AS from_user_id,
        payee.user_id AS to_user_id, coalesce(expires_at <= clock_timestamp(), false) AS is_due,
        (SELECT id FROM transfers AS reversal WHERE reversal.reverses = transfers.id) AS reversed_by
    FROM transfers
    JOIN accounts AS payer ON payer.id = debit_account_id
    JOIN accounts AS payee ON payee.id = credit_account_id
    WHERE transfers.id = :id
"""
_GET = Statement(_FIND)
# The transfer, then the accounts: nothing is waited for between the look at the clock and the posting. The accounts of
# an order's payment are left alone: it is resolved with its order, which is locked first.
_LOCK = Statement("""
    WITH locked AS (
        SELECT debit_account_id, credit_account_id, order_id FROM transfers WHERE id = :id FOR NO KEY UPDATE
    )
    SELECT id FROM accounts
    WHERE id = ANY(ARRAY(
        SELECT unnest(ARRAY[debit_account_id, credit_account_id]) FROM locked WHERE order_id IS NULL
    ))
    ORDER BY id FOR NO KEY UPDATE
""")

_LOCK_DUE = Statement("""
    SELECT id, debit_account_id, credit_account_id, amount FROM transfers
    WHERE state = 'pending' AND order_id IS NULL AND expires_at <= now()
    ORDER BY expires_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")


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


class HoldRepository(SqlAccess):
    """Pending transfers between users. A transfer is locked before the accounts, as an order is."""

    async def write(self, transfer_id: UUID, item: Item, expires_at: datetime) -> None:
        """Set the payer's credits aside until then. Both accounts are locked by the caller."""
        assert item.credit is not None, "holds are for somebody"
        await self.sql.run(
            _WRITE,
            id=transfer_id,
            debit=item.debit.account_id,
            credit=item.credit.account_id,
            amount=item.amount,
            note=item.note,
            expires_at=expires_at,
        )

    async def find(self, transfer_id: UUID, *, lock: bool = False) -> TransferRow | None:
        """The transfer, if there is one; `lock` takes the row and its accounts until the transaction ends."""
        if lock:
            # A statement of its own: the one after it sees what whoever held the lock has committed.
            await self.sql.fetch(_LOCK, id=transfer_id)
        rows = await self.sql.fetch(_GET, id=transfer_id)
        return TransferRow.from_row(rows[0]) if rows else None

    async def lock_due(self, limit: int) -> Sequence[Movement]:
        """Up to `limit` holds whose time is over and which nobody else has locked, locked until the transaction ends.

        Holds for orders are not among them: they expire with their order, which is locked first.
        """
        return [
            Movement(row["id"], row["debit_account_id"], row["credit_account_id"], row["amount"])
            for row in await self.sql.fetch(_LOCK_DUE, limit=limit)
        ]
