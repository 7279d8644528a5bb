"""All SQL about an account's statement."""

from datetime import datetime
from decimal import Decimal
from typing import Protocol, cast
from uuid import UUID

import sqlalchemy
from sqlalchemy.orm import contains_eager
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.models import Account, Entry, Transfer, TransferKind
from services.fields import Id, Instant
from services.query import EXACT, ORDERED, Filterable, Listing, PageQuery, Rows, Sortable
from services.sql import SqlAccess


class Line(Protocol):
    """One entry with its transfer, as plain values: what an export needs, without the cost of mapped objects."""

    version: int
    created_at: datetime
    kind: TransferKind
    amount: Decimal
    balance: Decimal
    transfer_id: UUID
    order_id: UUID | None
    note: str


class StatementRepository(SqlAccess):
    """The entries of an account. They are never changed, and their versions have no gaps."""

    async def page(self, user_id: int, wanted: PageQuery) -> Rows[Entry]:
        """Entries of the user's account with their transfers, newest first unless sorted otherwise."""
        # In the same statement: a replica may not have the account of a new user yet, which is then empty.
        account = select(col(Account.id)).where(col(Account.user_id) == user_id).scalar_subquery()
        statement = (
            select(Entry)
            .join(Transfer, col(Transfer.id) == col(Entry.transfer_id))
            .where(col(Entry.account_id) == account)
            .options(contains_eager(Entry.transfer))  # type: ignore[arg-type]
        )
        return await ENTRIES.page(self.session, statement, wanted)

    async def lines(self, account_id: int, last_version: int, wanted: PageQuery) -> Rows[Line]:
        """Entries up to `last_version`, oldest first."""
        statement = (
            sqlalchemy.select(*_LINE)
            .join(Transfer, col(Transfer.id) == col(Entry.transfer_id))
            .where(col(Entry.account_id) == account_id, col(Entry.version) <= last_version)
        )
        # Its rows have the attributes of a `Line`.
        lines = cast("SelectOfScalar[Line]", statement)
        return await _LINES.page(self.session, lines, wanted)


_VERSION = Sortable(col(Entry.version), Id)

ENTRIES = Listing[Entry](
    filters={
        "created_at": Filterable(col(Entry.created_at), Instant, ORDERED),
        "kind": Filterable(col(Transfer.kind), TransferKind, EXACT),
    },
    sorts={"version": _VERSION},
    key=_VERSION,
    default="-version",
)

_LINE = (
    col(Entry.version),
    col(Entry.created_at),
    col(Transfer.kind),
    col(Entry.amount),
    col(Entry.balance),
    col(Entry.transfer_id),
    col(Transfer.order_id),
    col(Transfer.note),
)

_LINES = Listing[Line](ENTRIES.filters, ENTRIES.sorts, ENTRIES.key, default="version")
