"""An account's statement as CSV (RFC 4180), in pieces, so that a long one needs no more memory than a short one."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence

from services.credits.statement.repository import Line
from services.errors import NotFound
from services.query import PageQuery
from services.unit_of_work import UnitOfWork

HEADINGS = ("version", "created_at", "kind", "amount", "balance", "transfer_id", "order_id", "note")
_LINES_A_PIECE = 1000
# What spreadsheets treat as the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


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
    piece = _Piece()
    piece.writer.writerow(HEADINGS)
    while True:
        async with open_work() as uow:
            wanted = PageQuery(filters, limit=_LINES_A_PIECE, cursor=cursor)
            lines = await uow.statements.lines(account_id, last_version, wanted)
        piece.writer.writerows(map(_row, lines.data))
        yield piece.take()
        if not lines.has_more:
            return
        cursor = lines.next_cursor


class _Piece:
    """Collects rows as text: lines end with CRLF, and values with a comma, a quote or a line break are quoted."""

    def __init__(self) -> None:
        self._text = io.StringIO(newline="")
        self.writer = csv.writer(self._text, lineterminator="\r\n")

    def take(self) -> bytes:
        taken = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return taken


def _row(line: Line) -> tuple[object, ...]:
    return (
        line.version,
        line.created_at.isoformat().replace("+00:00", "Z"),
        line.kind,
        line.amount,
        line.balance,
        line.transfer_id,
        line.order_id,
        _harmless(line.note),
    )


def _harmless(note: str) -> str:
    """Prefix a note that a spreadsheet would take for a formula with an apostrophe, so that it is shown as text."""
    return f"'{note}" if note.lstrip(" ").startswith(_FORMULA) else note
