"""All SQL for a batch of placed orders, except the ledger's: a few round trips, whatever the size of the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.orders.models import OrderStatus
from services.orders.processing import queries
from services.orders.repository import LockedOrder, Move
from services.sql import Read, Results, SqlAccess, Write


@dataclass(frozen=True, slots=True)
class Placed:
    """Orders and the stock of their products, locked until the transaction ends.

    `pieces` has the pieces of each product in each pending order, `available` the available stock of those products.
    """

    orders: dict[UUID, LockedOrder]
    pieces: dict[UUID, dict[int, int]]
    available: dict[int, int]


class ProcessingRepository(SqlAccess):
    """Reads and writes placed orders in batches."""

    @staticmethod
    def locking(order_ids: Sequence[UUID], *, wait: bool = True) -> Read[Placed]:
        """Lock the orders in the order of their ids, then the stock of the pending ones in the order of products.

        Without `wait`, rows that another transaction has locked are skipped.
        """
        return Read(queries.LOCK if wait else queries.LOCK_FREE, {"ids": list(order_ids)}, _placed)

    def settling(self, moves: Sequence[Move], reserved: Mapping[int, int]) -> Write:
        """Move pending orders, write their transitions, and reserve pieces. The caller has locked everything."""
        parameters = {
            "ids": [move.order_id for move in moves],
            "to_statuses": [move.after.value for move in moves],
            "reasons": [move.reason for move in moves],
            "actor": self.actor,
            "product_ids": list(reserved),
            "pieces": list(reserved.values()),
        }
        return Write(queries.SETTLE, parameters, wanted=len(moves))

    async def held_until(self, order_id: UUID) -> datetime | None:
        """When the first of the order's unresolved holds expires; None if it has none."""
        (row,) = await self.sql.fetch(queries.HELD_UNTIL, id=order_id)
        found: datetime | None = row["expires_at"]
        return found


def _placed(results: Results) -> Placed:
    orders, lines, stock = results
    placed = Placed({}, {}, dict(stock))
    for order_id, buyer_id, status, total in orders:
        placed.orders[order_id] = LockedOrder(order_id, buyer_id, OrderStatus(status), total)
        placed.pieces[order_id] = {}
    for order_id, product_id, pieces in lines:
        placed.pieces[order_id][product_id] = pieces
    return placed
