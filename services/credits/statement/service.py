"""An account's statement as CSV (RFC 4180), in pieces, so that a long one needs no more memory than a short one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

from services.credits.models import NOTED
from services.credits.statement.repository import Line
from services.exports import CsvLines, harmless, instant
from services.query import PageQuery, Rows
from services.unit_of_work import UnitOfWork

HEADINGS = ("version", "created_at", "kind", "amount", "balance", "transfer_id", "order_id", "note")
_LINES_A_PIECE = 1000


ReadPiece: TypeAlias = Callable[[Callable[[UnitOfWork], Awaitable[Rows[Line]]]], Awaitable[Rows[Line]]]
"""Runs a read in a transaction of its own, on whichever server has what is asked for."""


async def statement_csv(
    run: ReadPiece, account_id: int, last_version: int, filters: Sequence[str]
) -> AsyncIterator[bytes]:
    """The header and every matching entry up to `last_version`, oldest first.

    Each piece is read in a separate transaction, which ends before the piece is yielded, so a slow reader keeps none
    open. The result is nevertheless a consistent snapshot: entries are numbered and never change. Raises `BadQuery`
    before the first piece.
    """
    cursor: str | None = None
    text = CsvLines(HEADINGS)
    while True:
        wanted = PageQuery(filters, limit=_LINES_A_PIECE, cursor=cursor)
        lines = await run(partial(_read, account_id, last_version, wanted))
        yield text.piece(map(_row, lines.data))
        if not lines.has_more:
            return
        cursor = lines.next_cursor


async def _read(account_id: int, last_version: int, wanted: PageQuery, uow: UnitOfWork) -> Rows[Line]:
    return await uow.statements.lines(account_id, last_version, wanted)


def _row(line: Line) -> tuple[object, ...]:
    return (
        line.version,
        instant(line.created_at),
        line.kind,
        line.amount,
        line.balance,
        line.transfer_id,
        line.order_id,
        harmless(line.note) if line.kind in NOTED else "",
    )
