"""All SQL of the operators' overview. It reads every domain's tables and writes none."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import select

from services.audit import repository as audit
from services.fields import Id, Instant, Text
from services.outbox.models import DeadLetter
from services.query import EXACT, ORDERED, Filterable, QueryBuilder, Rows, Sortable
from services.sql import SqlAccess, Statement

# The audit says what is wrong; this counts whose. Its statements that compare entry by entry are left out.
_BOOKS = Statement(
    f"""
    SELECT
        (SELECT coalesce(sum(amount), 0) FROM entries) AS entries_sum,
        (SELECT coalesce(sum(posted), 0) FROM accounts) AS posted_sum,
        (SELECT count(*) FROM ({audit.OVERDRAWN.text}) AS wrong) AS overdrawn_accounts,
        (SELECT count(DISTINCT account_id) FROM ({audit.ACCOUNTS.text}) AS wrong) AS miscounted_accounts,
        (SELECT count(*) FROM ({audit.IMPOSSIBLE_STOCK.text}) AS wrong) AS negative_stock,
        (SELECT count(*) FROM ({audit.RESERVED_STOCK.text}) AS wrong) AS miscounted_stock,
        (SELECT count(DISTINCT order_id) FROM ({audit.PAYMENTS.text}) AS wrong) AS mispaid_orders
""",  # noqa: S608
    limit=65.0,
)

_ORDERS = Statement("SELECT status, count(*) AS number FROM orders GROUP BY status")

_BACKLOG = Statement("""
    SELECT count(*) AS waiting,
        count(*) FILTER (WHERE attempts > 0) AS retrying,
        coalesce(extract(epoch FROM clock_timestamp() - least(min(available_at) FILTER (
            WHERE available_at <= clock_timestamp()
        ), (
            SELECT occurred_at FROM events WHERE id = (
                SELECT event_id FROM outbox WHERE available_at IS NULL ORDER BY position LIMIT 1
            )
        ))), 0)::float AS oldest_due_seconds,
        (SELECT count(*) FROM dead_letters) AS dead_letters
    FROM outbox
""")

_FILTERS = {
    "aggregate": Filterable(DeadLetter.aggregate, Text, EXACT),
    "type": Filterable(DeadLetter.type, Text, EXACT),
    "fingerprint": Filterable(DeadLetter.fingerprint, Text, EXACT),
    "died_at": Filterable(DeadLetter.died_at, Instant, ORDERED),
}
_KEY = Sortable(DeadLetter.position, Id)


# Requests are limited to less. PostgreSQL 17 and newer also limit the transaction: a new value does not move a timer
# that is running, only 0 stops it. A statement's limit that is not shorter than the transaction's is ignored.
_TAKE_TIME = Statement("""
    SELECT set_config(name, '0', true),
        set_config(name, CASE name WHEN 'statement_timeout' THEN '60s' ELSE '62s' END, true)
    FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')
""")


class OperationsRepository(SqlAccess):
    """What waits, what failed, and whether the books balance."""

    async def books(self) -> dict[str, Any]:
        """Sums and counts over the whole ledger and stock, in one snapshot; a full scan, which may take a minute."""
        await self.sql.fetch(_TAKE_TIME)
        return dict((await self.sql.fetch(_BOOKS))[0])

    async def orders_by_status(self) -> dict[str, int]:
        return {row["status"]: row["number"] for row in await self.sql.fetch(_ORDERS)}

    async def backlog(self) -> dict[str, Any]:
        return dict((await self.sql.fetch(_BACKLOG))[0])

    async def dead_letters(
        self, *, filters: Sequence[str], sort: str | None, limit: int, cursor: str | None
    ) -> Rows[DeadLetter]:
        query = QueryBuilder[DeadLetter](
            select(DeadLetter), filters=_FILTERS, sorts={"position": _KEY}, key=_KEY, default_sort="position"
        )
        return await query.filter(filters).sort(sort).page(self.session, limit=limit, cursor=cursor)
