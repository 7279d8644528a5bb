"""All SQL that finds orders whose time is over."""

from dataclasses import dataclass

from services.orders.models import OrderStatus
from services.orders.repository import LockedOrder
from services.sql import SqlAccess, Statement

# What the indexes on `expires_at` find, and the order's row as it is when it is locked: it may have been paid since.
_LOCK_DUE = Statement("""
    SELECT id, buyer_id, status, total, coalesce(expires_at <= now(), false) AS is_due FROM orders
    WHERE id IN (
        SELECT id FROM orders WHERE expires_at <= now()
        UNION ALL SELECT order_id FROM transfers WHERE state = 'pending' AND kind = 'order' AND expires_at <= now()
    ) AND status IN ('awaiting_payment', 'pending')
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")


@dataclass(frozen=True, slots=True)
class DueOrder:
    """An order that awaits payment or has holds, one of which the time was over when it was looked for."""

    order: LockedOrder
    is_due: bool
    """It awaits its payment, and the time for that is over."""


class OrderExpiryRepository(SqlAccess):
    """Orders that are to be cancelled because nothing came of them in time."""

    async def lock_due(self, limit: int) -> list[DueOrder]:
        """Up to `limit` of them that nobody else has locked, locked until the transaction ends."""
        return [
            DueOrder(LockedOrder(row["id"], row["buyer_id"], OrderStatus(row["status"]), row["total"]), row["is_due"])
            for row in await self.sql.fetch(_LOCK_DUE, limit=limit)
        ]
