"""An account's statement as CSV (RFC 4180), in pieces, so that a long one needs no more memory than a short one."""

from collections.abc import AsyncIterator, Callable, Sequence

from services.credits.statement.repository import Line
from services.errors import NotFound
from services.exports import CsvLines, harmless, instant
from services.query import PageQuery
from services.unit_of_work import UnitOfWork

HEADINGS = ("version", "created_at", "kind", "amount", "balance", "transfer_id", "order_id", "note")
_LINES_A_PIECE = 1000


async def statement_csv(
    open_work: Callable[[], UnitOfWork], user_id: int, filters: Sequence[str]
) -> AsyncIterator[bytes]:
    """The header and every matching entry, oldest first.

    Each piece is read in a separate transaction, which ends before the piece is yielded, so a slow reader keeps none
    open. The result is nevertheless a consistent snapshot: entries are numbered and never change, and it ends with the
    entry that was the newest at the start. Raises `BadQuery` and `NotFound` before the first piece.
    """
    async with open_work() as uow:
        bounds = await uow.statements.bounds(user_id)
        if bounds is None:
            raise NotFound(f"there is no user {user_id}")
        account_id, last_version = bounds
    cursor: str | None = None
    text = CsvLines(HEADINGS)
    while True:
        async with open_work() as uow:
            wanted = PageQuery(filters, limit=_LINES_A_PIECE, cursor=cursor)
            lines = await uow.statements.lines(account_id, last_version, wanted)
        yield text.piece(map(_row, lines.data))
        if not lines.has_more:
            return
        cursor = lines.next_cursor


def _row(line: Line) -> tuple[object, ...]:
    return (
        line.version,
        instant(line.created_at),
        line.kind,
        line.amount,
        line.balance,
        line.transfer_id,
        line.order_id,
        harmless(line.note),
    )
