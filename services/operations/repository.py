"""All SQL of the operators' overview. It reads every domain's tables and writes none."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import select

from services.fields import Id, Instant, Text
from services.outbox.models import DeadLetter
from services.query import EXACT, ORDERED, Filterable, QueryBuilder, Rows, Sortable
from services.sql import SqlAccess, Statement

_BOOKS = Statement("""
    SELECT
        (SELECT coalesce(sum(amount), 0) FROM entries) AS entries_sum,
        (SELECT coalesce(sum(posted), 0) FROM accounts) AS posted_sum,
        (SELECT count(*) FROM accounts WHERE system_name IS NULL AND posted - held < 0) AS overdrawn_accounts,
        (SELECT count(*) FROM accounts
         LEFT JOIN (SELECT account_id, sum(amount) AS amount, max(version) AS version FROM entries GROUP BY account_id)
            AS entered ON entered.account_id = accounts.id
         LEFT JOIN (SELECT debit_account_id, sum(amount) AS amount FROM transfers WHERE state = 'pending'
                    GROUP BY debit_account_id) AS pending ON pending.debit_account_id = accounts.id
         WHERE accounts.posted <> coalesce(entered.amount, 0) OR accounts.version <> coalesce(entered.version, 0)
            OR accounts.held <> coalesce(pending.amount, 0)) AS miscounted_accounts,
        (SELECT count(*) FROM inventory WHERE on_hand < 0 OR reserved < 0 OR reserved > on_hand) AS negative_stock,
        (SELECT count(*) FROM inventory
         LEFT JOIN (SELECT product_id, sum(quantity) AS pieces FROM order_items JOIN orders ON orders.id = order_id
                    WHERE orders.status = 'confirmed' GROUP BY product_id) AS due USING (product_id)
         WHERE inventory.reserved <> coalesce(due.pieces, 0)) AS miscounted_stock,
        (SELECT count(*) FROM (
            SELECT FROM orders LEFT JOIN transfers ON transfers.order_id = orders.id
            GROUP BY orders.id, orders.status, orders.total
            HAVING coalesce(sum(amount) FILTER (WHERE kind = 'order' AND state = 'posted'), 0)
                - coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0)
                <> CASE WHEN orders.status IN ('confirmed', 'fulfilled') THEN orders.total ELSE 0 END
            OR coalesce(sum(amount) FILTER (WHERE kind = 'order' AND state = 'pending'), 0)
                <> CASE WHEN orders.status = 'pending' THEN orders.total ELSE 0 END
         ) AS wrong) AS mispaid_orders
""")

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


class OperationsRepository(SqlAccess):
    """What waits, what failed, and whether the books balance."""

    async def books(self) -> dict[str, Any]:
        """Sums and counts over the whole ledger and stock, in one snapshot; a full scan."""
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
