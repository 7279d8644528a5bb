"""All SQL about holds between users."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from services.credits.holds import queries
from services.credits.ledger.rules import Item, Movement
from services.sql import SqlAccess
from services.sweeps.repository import BEFORE_ALL


class HoldRepository(SqlAccess):
    """Pending transfers between users. A transfer is locked before the accounts, as an order is."""

    async def write(self, transfer_id: UUID, item: Item, expires_at: datetime) -> None:
        """Hold the payer's credits until `expires_at`. The caller has locked both accounts."""
        assert item.credit is not None, "a hold needs a recipient"
        await self.sql.run(
            queries.WRITE,
            id=transfer_id,
            debit=item.debit.account_id,
            credit=item.credit.account_id,
            amount=item.amount,
            note=item.note,
            expires_at=expires_at,
            actor=self.actor,
        )

    async def due(self, after: "DueHold | None", limit: int) -> "list[DueHold]":
        """Up to `limit` overdue holds that come after `after`.

        Holds for orders are excluded: they expire with their order, which is locked first.
        """
        expires_at, transfer_id = BEFORE_ALL if after is None else after
        rows = await self.sql.fetch(queries.DUE, expires_at=expires_at, id=transfer_id, limit=limit)
        return [DueHold(row["expires_at"], row["id"]) for row in rows]

    async def lock_due(self, transfer_ids: Sequence[UUID]) -> list[Movement]:
        """Lock those of the holds that are still due, and their payers' accounts, until the transaction ends.

        Holds are skipped if they or their payers' accounts are locked by another transaction.
        """
        return [
            Movement(row["id"], row["debit_account_id"], row["credit_account_id"], row["amount"])
            for row in await self.sql.fetch(queries.LOCK_DUE, ids=list(transfer_ids))
        ]

    async def lock_of_orders(self, order_ids: Sequence[UUID]) -> "list[HoldOfOrder]":
        """The pending transfers for these orders, with their buyers' accounts locked until the transaction ends.

        Holds are skipped if their buyer's account is locked by another transaction. The caller has locked the orders,
        so their holds do not change.
        """
        rows = await self.sql.fetch(queries.LOCK_OF_ORDERS, order_ids=list(order_ids))
        return [HoldOfOrder(row["id"], row["order_id"], row["is_due"]) for row in rows]


class DueHold(NamedTuple):
    """A pending hold between users that could be posted until `expires_at`."""

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
