"""Exports orders in pieces, so that many need no more memory than a few."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypedDict
from uuid import UUID

from services.errors import Forbidden
from services.exports import CsvLines, Format, JsonLines, harmless, instant
from services.orders.models import ORDER_FIELDS
from services.orders.repository import EXPORTED
from services.orders.schemas import Side
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope

NIL = UUID(int=0)
"""Before every order."""


class Parties(TypedDict):
    """Whose orders to read; None means anyone's."""

    buyer_id: int | None
    seller_id: int | None


def of_side(caller: Caller, side: Side) -> Parties:
    """The orders that the caller means. Raises `Forbidden` for all orders without `orders:read_all`."""
    if side is Side.everybody and not caller.may(Scope.orders_read_all):
        scope = Scope.orders_read_all.value
        raise Forbidden(f"listing all orders needs the scope {scope}, which you do not have", scope=scope)
    return Parties(
        buyer_id=caller.id if side is Side.buyer else None, seller_id=caller.id if side is Side.seller else None
    )


Found: TypeAlias = tuple[UUID, Sequence[Sequence[Any]]]
"""The last order of the export, and a piece of it."""

RunRead: TypeAlias = Callable[[Callable[[UnitOfWork], Awaitable[Found]]], Awaitable[Found]]
"""Runs a read in a transaction of its own, on whichever server has what is asked for."""


async def export(run: RunRead, form: Format, filters: Sequence[str], wanted: Parties) -> AsyncIterator[bytes]:
    """A line for each order, in the order in which they were placed, up to those placed when the export begins.

    Each piece is read in a transaction of its own, which ends before the piece is yielded, so a slow reader keeps none
    open. An order is shown as its piece finds it. Raises `BadQuery` before the first piece.
    """
    text = CsvLines(EXPORTED) if form is Format.csv else JsonLines(EXPORTED)
    last, after = None, None
    while True:
        last, rows = await run(partial(_next, filters, wanted, last, after))
        if rows or after is None:
            yield text.piece(map(_csv, rows) if form is Format.csv else rows)
        if not rows:
            return
        after = rows[-1][0]


async def _next(
    filters: Sequence[str], wanted: Parties, last: UUID | None, after: UUID | None, uow: UnitOfWork
) -> Found:
    if last is None:
        # Not by this process's clock: another one, whose clock is ahead, may just have placed an order.
        last = await uow.orders.newest(**wanted) or NIL
    async for rows in uow.orders.exported(filters, last=last, after=after, **wanted):
        return last, rows
    return last, []


_SAID = frozenset(EXPORTED.index(name) for name in ORDER_FIELDS)
_TIMES = frozenset(EXPORTED.index(name) for name in ("created_at", "updated_at"))


def _csv(row: Sequence[Any]) -> list[object]:
    values = list(row)
    for place in _TIMES:
        values[place] = instant(values[place])
    for place in _SAID:
        if isinstance(values[place], str):
            values[place] = harmless(values[place])
    return values
