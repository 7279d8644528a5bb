"""All SQL that reads transfers between users. The ledger writes them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.credits.ledger.rules import Balance, Movement
from services.credits.models import TransferKind, TransferState
from services.credits.transfers import queries
from services.sql import Read, Results, SqlAccess


class TransferRepository(SqlAccess):
    """Transfers between users."""

    async def parties(self, sender_id: int, recipient_ids: Iterable[int], *, lock: bool) -> "Parties":
        """The users' accounts; `lock` locks them in the order of their ids until the transaction ends."""
        statement = queries.LOCK_PARTIES if lock else queries.READ_PARTIES
        rows = await self.sql.fetch(statement, user_ids=list({sender_id, *recipient_ids}))
        balances = {
            row["user_id"]: Balance.from_row(row)
            for row in rows
            # Deleted and inactive recipients count as unknown; the sender has just been authenticated.
            if row["is_known"] or row["user_id"] == sender_id
        }
        return Parties(balances[sender_id], balances, rows[0]["at"])

    @staticmethod
    def locking_free_parties(user_ids: Sequence[int]) -> "Read[FreeParties]":
        """Lock the users' accounts until the transaction ends, as a part of a longer read.

        Those that another transaction has locked are skipped.
        """
        return Read(queries.LOCK_FREE_PARTIES, {"user_ids": list(user_ids)}, _free_parties)

    async def find(self, transfer_id: UUID, *, lock: bool = False) -> "TransferRow | None":
        """The transfer, if there is one; `lock` locks the row and its accounts until the transaction ends."""
        if lock:
            # A separate statement: the next one sees what the previous holder of the lock has committed.
            await self.sql.fetch(queries.LOCK, id=transfer_id)
        rows = await self.sql.fetch(queries.GET, id=transfer_id)
        return TransferRow.from_row(rows[0]) if rows else None


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A transfer with the users on both sides; None for a system account."""

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
    """Whether its time to be posted has passed, even if no sweep has expired it yet."""
    reversed_by: UUID | None

    @classmethod
    def from_row(cls, row: Any) -> "TransferRow":
        return cls(**{**row, "kind": TransferKind(row["kind"]), "state": TransferState(row["state"])})

    def movement(self) -> Movement:
        return Movement(self.id, self.debit_account_id, self.credit_account_id, self.amount, self.order_id)


@dataclass(frozen=True, slots=True)
class FreeParties:
    """The accounts of several users' transfers, locked, by user id."""

    balances: Mapping[int, Balance]
    known: Collection[int]
    """The users who can receive credits, among those with a balance."""
    busy: Collection[int]
    """The users whose accounts another transaction has locked."""
    at: datetime | None
    """The transaction's time, at which the transfers are created; None if there is no account."""


def _free_parties(results: Results) -> FreeParties:
    parties, free = results
    balances = {account[1]: Balance(*account) for *account, _ in free}
    return FreeParties(
        balances=balances,
        known={user_id for _, user_id, *_, is_known in free if is_known},
        busy={user_id for user_id, _ in parties} - balances.keys(),
        at=parties[0][1] if parties else None,
    )


@dataclass(frozen=True, slots=True)
class Parties:
    """The accounts of transfers. `recipients` is by user id, without unknown ones."""

    sender: Balance
    recipients: Mapping[int, Balance]
    at: datetime
    """The transaction's time, at which the transfers are created."""
