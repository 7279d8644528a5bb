"""All SQL of holds between users, and of single transfers as their parties see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from services.credits.models import TransferKind, TransferState
from services.credits.planning import Item
from services.credits.repository import Movement
from services.sql import SqlAccess, Statement
from services.sweeps.repository import BEFORE_ALL

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

# The row comparison and ORDER BY match the index, so a slice reads only its own rows, not those of earlier slices.
_DUE = Statement("""
    SELECT expires_at, id FROM transfers
    WHERE state = 'pending' AND order_id IS NULL AND expires_at <= now()
    AND (expires_at, id) > (CAST(:expires_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY expires_at, id LIMIT :limit
""")

# Only the payer's account changes when credits are released. If it is locked, this does not wait. Rows are found by
# their ids, and only then checked for being due: with one condition, the planner might read the index of all due rows.
_LOCK_DUE = Statement("""
    WITH found AS MATERIALIZED (
        SELECT id, debit_account_id, credit_account_id, amount, state, order_id, expires_at FROM transfers
        WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), due AS MATERIALIZED (
        SELECT * FROM found WHERE state = 'pending' AND order_id IS NULL AND expires_at <= now()
    ), payers AS MATERIALIZED (
        SELECT id FROM accounts WHERE id = ANY(ARRAY(SELECT debit_account_id FROM due))
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT id, debit_account_id, credit_account_id, amount FROM due
    WHERE debit_account_id IN (SELECT id FROM payers)
""")

_LOCK_OF_ORDERS = Statement("""
    WITH found AS MATERIALIZED (
        SELECT id, order_id, debit_account_id, expires_at, kind, state FROM transfers
        WHERE order_id = ANY(CAST(:order_ids AS uuid[]))
    ), pending AS MATERIALIZED (
        SELECT * FROM found WHERE kind = 'order' AND state = 'pending'
    ), payers AS MATERIALIZED (
        SELECT id FROM accounts WHERE id = ANY(ARRAY(SELECT debit_account_id FROM pending))
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT id, order_id, expires_at <= clock_timestamp() AS is_due FROM pending
    WHERE debit_account_id IN (SELECT id FROM payers) ORDER BY id
""")


class DueHold(NamedTuple):
    """A hold between users that ended at `expires_at`."""

    expires_at: datetime
    transfer_id: UUID

    @property
    def subject(self) -> str:
        return str(self.transfer_id)


class HoldOfOrder(NamedTuple):
    """A pending transfer for an order."""

    id: UUID
    order_id: UUID
    is_due: bool


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

    async def due(self, after: DueHold | None, limit: int) -> list[DueHold]:
        """Up to `limit` holds whose time is over, and which come after `after`.

        Holds for orders are not among them: they expire with their order, which is locked first.
        """
        expires_at, transfer_id = BEFORE_ALL if after is None else after
        rows = await self.sql.fetch(_DUE, expires_at=expires_at, id=transfer_id, limit=limit)
        return [DueHold(row["expires_at"], row["id"]) for row in rows]

    async def lock_due(self, transfer_ids: Sequence[UUID]) -> list[Movement]:
        """Those of the holds that are still due, locked with their payers' accounts until the transaction ends.

        Holds are left out if they or their payers' accounts are locked by another transaction.
        """
        return [
            Movement(row["id"], row["debit_account_id"], row["credit_account_id"], row["amount"])
            for row in await self.sql.fetch(_LOCK_DUE, ids=list(transfer_ids))
        ]

    async def lock_of_orders(self, order_ids: Sequence[UUID]) -> list[HoldOfOrder]:
        """The pending transfers for these orders, with their buyers' accounts locked until the transaction ends.

        Holds are left out if their buyer's account is locked by another transaction. The caller has locked the orders,
        so their holds do not change.
        """
        rows = await self.sql.fetch(_LOCK_OF_ORDERS, order_ids=list(order_ids))
        return [HoldOfOrder(row["id"], row["order_id"], row["is_due"]) for row in rows]
