"""All SQL that reads transfers between users. The ledger writes them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, cast
from uuid import UUID

import pydantic
import sqlalchemy
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.ledger.rules import Balance, Movement, anyone
from services.credits.models import Account, Transfer, TransferKind, TransferState
from services.credits.schemas import Party
from services.credits.transfers import queries
from services.fields import Id, Instant
from services.filters import EXACT, ORDERED, Filterable, made_then
from services.query import Listing, PageQuery, Rows, Sortable
from services.sql import Read, Results, SqlAccess


@dataclass(frozen=True, slots=True)
class TransferLine:
    """A transfer with the users on both sides; None for a system account."""

    id: UUID
    kind: TransferKind
    state: TransferState
    amount: Decimal
    posted_amount: Decimal | None
    order_id: UUID | None
    reverses: UUID | None
    note: str
    created_at: datetime
    expires_at: datetime | None
    resolved_at: datetime | None
    from_user_id: int | None
    to_user_id: int | None
    reversed_by: UUID | None


class TransferRepository(SqlAccess):
    """Transfers between users."""

    async def parties(self, sender_id: int, recipient_ids: Iterable[int] = (), *, lock: bool) -> "Parties":
        """The users' accounts; `lock` locks them in the order of their ids until the transaction ends."""
        statement = queries.LOCK_PARTIES if lock else queries.READ_PARTIES
        rows = await self.sql.fetch(statement, user_ids=list({sender_id, *recipient_ids}))
        balances = {
            row["user_id"]: Balance.from_row(row)
            for row in rows
            # Recipients who are deleted or inactive, or whose account is closed, count as unknown: what became of
            # others is not told. The sender has just been authenticated.
            if row["is_known"] or row["user_id"] == sender_id
        }
        return Parties(balances[sender_id], balances, rows[0]["at"])

    @staticmethod
    def locking_free_parties(user_ids: Sequence[int]) -> "Read[FreeParties]":
        """Lock the users' accounts until the transaction ends, as a part of a longer read.

        Those that another transaction has locked are skipped.
        """
        return Read(queries.LOCK_FREE_PARTIES, {"user_ids": list(user_ids)}, _free_parties)

    async def page(self, user_id: int, party: Party, wanted: PageQuery, *, holds: bool = False) -> Rows[TransferLine]:
        """Transfers that the user pays or receives, other than those of orders; with `holds`, those in two phases."""
        # In the same statement: a replica may not have the account of a new user yet.
        account = select(col(Account.id)).where(col(Account.user_id) == user_id).scalar_subquery()
        side = col(Transfer.debit_account_id if party is Party.payer else Transfer.credit_account_id)
        within = [side == account, col(Transfer.order_id).is_(None)]
        if holds:
            within.append(col(Transfer.expires_at).is_not(None))
        # Its rows have the attributes of a `TransferLine`.
        lines = cast("SelectOfScalar[TransferLine]", _LINES)
        return await (HOLDS if holds else TRANSFERS).page(self.session, lines, wanted, *within)

    async def find(self, transfer_id: UUID, *, lock: bool = False) -> "TransferRow | None":
        """The transfer, if there is one; `lock` locks the row and its accounts until the transaction ends."""
        if lock:
            # A separate statement: the next one sees what the previous holder of the lock has committed.
            await self.sql.fetch(queries.LOCK, id=transfer_id)
        rows = await self.sql.fetch(queries.GET, id=transfer_id)
        return TransferRow.from_row(rows[0]) if rows else None


@dataclass(frozen=True, slots=True)
class TransferRow(TransferLine):
    """The same, with its accounts."""

    debit_account_id: int
    credit_account_id: int
    is_due: bool
    """Whether its time to be posted has passed, even if no sweep has expired it yet."""

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
    recipients: dict[int, Balance]
    at: datetime
    """The transaction's time, at which the transfers are created."""

    def with_anyone(self, user_ids: Iterable[int]) -> "Parties":
        """The same, as if all these users could receive credits."""
        return replace(self, recipients={user_id: anyone() for user_id in user_ids} | self.recipients)


_PAYER, _PAYEE, _REVERSAL = aliased(Account), aliased(Account), aliased(Transfer)

_REVERSED_BY = select(col(_REVERSAL.id)).where(col(_REVERSAL.reverses) == col(Transfer.id)).scalar_subquery()

_LINES = (
    sqlalchemy.select(
        *(
            col(getattr(Transfer, name))
            for name in TransferLine.__annotations__
            if name not in ("from_user_id", "to_user_id", "reversed_by")
        ),
        col(_PAYER.user_id).label("from_user_id"),
        col(_PAYEE.user_id).label("to_user_id"),
        _REVERSED_BY.label("reversed_by"),
    )
    .join(_PAYER, col(_PAYER.id) == col(Transfer.debit_account_id))
    .join(_PAYEE, col(_PAYEE.id) == col(Transfer.credit_account_id))
)


def _user_of(account: Any) -> Any:
    """The user of the account on one side of a transfer."""
    return select(col(Account.user_id)).where(col(Account.id) == account).correlate(Transfer).scalar_subquery()


_Amount = Annotated[Decimal, pydantic.Field(max_digits=18, decimal_places=2)]

_ID = Sortable(col(Transfer.id), UUID)

_FILTERS = {
    "state": Filterable(col(Transfer.state), TransferState, EXACT),
    "amount": Filterable(col(Transfer.amount), _Amount, ORDERED),
    "from_user_id": Filterable(_user_of(col(Transfer.debit_account_id)), Id, EXACT),
    "to_user_id": Filterable(_user_of(col(Transfer.credit_account_id)), Id, EXACT),
    "created_at": Filterable(col(Transfer.created_at), Instant, ORDERED, bounds=made_then),
}

TRANSFERS = Listing[TransferLine](
    filters={**_FILTERS, "kind": Filterable(col(Transfer.kind), TransferKind, EXACT)},
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)
"""The transfers of one payer or recipient, other than those of orders."""

HOLDS = Listing[TransferLine](
    filters={**_FILTERS, "expires_at": Filterable(col(Transfer.expires_at), Instant, ORDERED)},
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)
"""Those of them that were holds, including those that have ended."""
