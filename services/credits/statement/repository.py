"""All SQL about an account's statement."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

import sqlalchemy
from sqlalchemy import ColumnElement
from sqlalchemy.orm import aliased, contains_eager
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.models import Account, Entry, Transfer, TransferKind
from services.fields import Id, Instant
from services.filters import EXACT, ORDERED, Filterable, Operator
from services.query import Listing, PageQuery, Rows, Sortable
from services.sql import SqlAccess

RowT = TypeVar("RowT")


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
            .options(contains_eager(Entry.transfer))  # type: ignore[arg-type]
        )
        return await _of(ENTRIES, account).page(self.session, statement, wanted, col(Entry.account_id) == account)

    async def lines(self, account_id: int, last_version: int, wanted: PageQuery) -> Rows[Line]:
        """Entries up to `last_version`, oldest first."""
        statement = sqlalchemy.select(*_LINE).join(Transfer, col(Transfer.id) == col(Entry.transfer_id))
        # Its rows have the attributes of a `Line`.
        lines = cast("SelectOfScalar[Line]", statement)
        within = col(Entry.account_id) == account_id, col(Entry.version) <= last_version
        return await _of(_LINES, account_id).page(self.session, lines, wanted, *within)


_VERSION = Sortable(col(Entry.version), Id)

_KIND = select(col(Transfer.kind)).where(col(Transfer.id) == col(Entry.transfer_id)).scalar_subquery()

ENTRIES = Listing[Entry](
    filters={
        "created_at": Filterable(col(Entry.created_at), Instant, ORDERED),
        "kind": Filterable(_KIND, TransferKind, EXACT),
    },
    sorts={"version": _VERSION},
    key=_VERSION,
    default="-version",
    owner=col(Entry.account_id),
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

_LINES = Listing[Line](ENTRIES.filters, ENTRIES.sorts, ENTRIES.key, "version", ENTRIES.owner)


def _of(listing: Listing[RowT], account_id: Any) -> Listing[RowT]:
    """The list, as it finds the entries of this account by time."""
    found = replace(listing.filters["created_at"], bounds=partial(_written, account_id))
    return replace(listing, filters={**listing.filters, "created_at": found})


def _written(account_id: Any, version: Any, operator: Operator, values: Sequence[Any]) -> ColumnElement[bool] | None:
    """The versions of the account's entries from this time on, or up to it: the times of entries grow with them."""
    one = aliased(Entry)
    at, number, of_account = col(one.created_at), col(one.version), col(one.account_id) == account_id
    first = select(number).where(of_account, at >= values[0]).order_by(at, number).limit(1).scalar_subquery()
    last = select(number).where(of_account, at <= values[0]).order_by(at.desc(), number.desc()).limit(1)
    from_it, up_to_it = version >= first, version <= last.scalar_subquery()
    conditions: dict[Operator, ColumnElement[bool]] = {
        Operator.gt: from_it,
        Operator.gte: from_it,
        Operator.lt: up_to_it,
        Operator.lte: up_to_it,
        Operator.eq: from_it & up_to_it,
    }
    return conditions.get(operator)
