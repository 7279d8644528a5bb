"""All SQL of a batch of placed orders but for that of the ledger: few trips to the database, whatever their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.orders.models import OrderStatus
from services.orders.repository import LockedOrder, Move
from services.sql import Read, Reading, Results, SqlAccess, Write, Writing, without_waiting

# Orders, then the stock, as everywhere. The lines are those from before a lock was waited for; for a pending order that
# is the same: nothing changes them.
_LOCKING = """
    locked_orders AS MATERIALIZED (
        SELECT id, buyer_id, status, total FROM orders
        WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
    ), lines AS MATERIALIZED (
        SELECT order_id, product_id, sum(quantity - returned)::bigint AS pieces FROM order_items
        WHERE order_id = ANY(ARRAY(SELECT id FROM locked_orders WHERE status = 'pending'))
        GROUP BY order_id, product_id
    ), locked_stock AS MATERIALIZED (
        SELECT product_id, on_hand - reserved AS available FROM inventory
        WHERE product_id = ANY(ARRAY(SELECT product_id FROM lines)) ORDER BY product_id FOR NO KEY UPDATE
    )
"""
_LOCKED = {
    "locked_orders": ("id", "buyer_id", "status", "total"),
    "lines": ("order_id", "product_id", "pieces"),
    "locked_stock": ("product_id", "available"),
}
_LOCK = Reading(_LOCKING, results=_LOCKED)
_LOCK_FREE = Reading(without_waiting(_LOCKING), results=_LOCKED)

_SETTLE = Writing(
    """
    moved AS (
        UPDATE orders SET status = move.to_status, expires_at = NULL, version = version + 1,
            updated_at = clock_timestamp()
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:to_statuses AS text[]), CAST(:reasons AS text[])
        ) AS move(id, to_status, reason)
        WHERE orders.id = move.id AND orders.status = 'pending'
        RETURNING orders.id, move.to_status, move.reason
    ), noted AS (
        INSERT INTO order_transitions (order_id, from_status, to_status, reason, created_at)
        SELECT id, 'pending', to_status, reason, clock_timestamp() FROM moved
    ), reserved AS (
        UPDATE inventory SET reserved = inventory.reserved + wanted.pieces
        FROM unnest(CAST(:product_ids AS bigint[]), CAST(:pieces AS bigint[])) AS wanted(product_id, pieces)
        WHERE inventory.product_id = wanted.product_id
    )
    """,
    counted="moved",
)


@dataclass(frozen=True, slots=True)
class Placed:
    """Orders and the stock of what is in them, locked until the transaction ends.

    `pieces` of each product are in each order that is pending, `available` of each of those products in stock.
    """

    orders: dict[UUID, LockedOrder]
    pieces: dict[UUID, dict[int, int]]
    available: dict[int, int]


class ProcessingRepository(SqlAccess):
    """What a worker reads and writes of placed orders."""

    @staticmethod
    def locking(order_ids: Sequence[UUID], *, wait: bool = True) -> Read[Placed]:
        """Lock the orders in the order of their ids, then the stock of those that are pending by product.

        Without `wait`, rows that another transaction has locked are left out.
        """
        return Read(_LOCK if wait else _LOCK_FREE, {"ids": list(order_ids)}, _placed)

    @staticmethod
    def settling(moves: Sequence[Move], reserved: Mapping[int, int]) -> Write:
        """Move pending orders on, with their transitions, and set pieces aside. The caller has locked everything."""
        parameters = {
            "ids": [move.order_id for move in moves],
            "to_statuses": [move.after.value for move in moves],
            "reasons": [move.reason for move in moves],
            "product_ids": list(reserved),
            "pieces": list(reserved.values()),
        }
        return Write(_SETTLE, parameters, wanted=len(moves))


def _placed(results: Results) -> Placed:
    orders, lines, stock = results
    placed = Placed({}, {}, dict(stock))
    for order_id, buyer_id, status, total in orders:
        placed.orders[order_id] = LockedOrder(order_id, buyer_id, OrderStatus(status), total)
        placed.pieces[order_id] = {}
    for order_id, product_id, pieces in lines:
        placed.pieces[order_id][product_id] = pieces
    return placed
