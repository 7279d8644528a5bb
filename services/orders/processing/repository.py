"""All SQL of a batch of placed orders but for that of the ledger: few trips to the database, whatever their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.orders.models import OrderStatus
from services.orders.processing import queries
from services.orders.repository import LockedOrder, Move
from services.sql import Read, Results, SqlAccess, Write


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
        return Read(queries.LOCK if wait else queries.LOCK_FREE, {"ids": list(order_ids)}, _placed)

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
        return Write(queries.SETTLE, parameters, wanted=len(moves))


def _placed(results: Results) -> Placed:
    orders, lines, stock = results
    placed = Placed({}, {}, dict(stock))
    for order_id, buyer_id, status, total in orders:
        placed.orders[order_id] = LockedOrder(order_id, buyer_id, OrderStatus(status), total)
        placed.pieces[order_id] = {}
    for order_id, product_id, pieces in lines:
        placed.pieces[order_id][product_id] = pieces
    return placed
