"""All SQL of the operators' overview. It reads every domain's tables and writes none."""

from typing import Any

from services.audit import queries as audit
from services.sql import SqlAccess, Statement


class OperationsRepository(SqlAccess):
    """Whether the books balance, and how many orders there are."""

    async def books(self) -> dict[str, Any]:
        """Sums and counts over the whole ledger and stock, in one snapshot; a full scan, which may take a minute."""
        await self.sql.fetch(_TAKE_TIME)
        return dict((await self.sql.fetch(_BOOKS))[0])

    async def orders_by_status(self) -> dict[str, int]:
        return {row["status"]: row["number"] for row in await self.sql.fetch(_ORDERS)}


# The audit reports what is wrong; this counts the rows concerned. Checks that compare entry by entry are left out.
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

# The limit for requests is shorter. PostgreSQL 17 and newer also limit the transaction: a new value does not change a
# running timer; only 0 stops it. A limit for statements that is not shorter than the transaction's is ignored.
_TAKE_TIME = Statement("""
    SELECT set_config(name, '0', true),
        set_config(name, CASE name WHEN 'statement_timeout' THEN '60s' ELSE '62s' END, true)
    FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')
""")
