"""All SQL that finds overdue orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from services.orders.expiry import queries
from services.orders.models import OrderStatus
from services.orders.repository import LockedOrder
from services.sql import SqlAccess
from services.sweeps.repository import BEFORE_ALL


class UnpaidOrder(NamedTuple):
    """An order that awaited payment until `expires_at`."""

    expires_at: datetime
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class HeldOrder(NamedTuple):
    """An order with a pending hold that could be posted until `expires_at`."""

    expires_at: datetime
    transfer_id: UUID
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


@dataclass(frozen=True, slots=True)
class DueOrder:
    """An order that awaits payment or has holds, and whose row is locked until the transaction ends."""

    order: LockedOrder
    is_due: bool
    """Whether it awaits payment and the time for that has passed."""


class OrderExpiryRepository(SqlAccess):
    """Orders to cancel because they were not paid or confirmed in time."""

    async def unpaid(self, after: UnpaidOrder | None, limit: int) -> list[UnpaidOrder]:
        """Up to `limit` orders that were not paid in time and come after `after`."""
        expires_at, order_id = BEFORE_ALL if after is None else after
        rows = await self.sql.fetch(queries.UNPAID, expires_at=expires_at, id=order_id, limit=limit)
        return [UnpaidOrder(row["expires_at"], row["id"]) for row in rows]

    async def held(self, after: HeldOrder | None, limit: int) -> list[HeldOrder]:
        """The orders of up to `limit` overdue holds that come after `after`; an order appears once for each hold."""
        expires_at, transfer_id = BEFORE_ALL if after is None else after[:2]
        rows = await self.sql.fetch(queries.HELD, expires_at=expires_at, id=transfer_id, limit=limit)
        return [HeldOrder(row["expires_at"], row["id"], row["order_id"]) for row in rows]

    async def lock(self, order_ids: Sequence[UUID]) -> list[DueOrder]:
        """Lock the orders that can still expire until the transaction ends; already locked ones are skipped."""
        return [
            DueOrder(LockedOrder(row["id"], row["buyer_id"], OrderStatus(row["status"]), row["total"]), row["is_due"])
            for row in await self.sql.fetch(queries.LOCK, ids=list(order_ids))
        ]
