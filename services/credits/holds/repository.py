"""All SQL of holds between users."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from services.credits.ledger.repository import Movement
from services.credits.transfers.planning import Item
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
