"""All SQL that places a group of orders, except the ledger's."""

from collections.abc import Collection, Sequence

from services.orders.models import ITEM_FIELDS, ORDER_FIELDS
from services.orders.placing import queries
from services.orders.repository import NewOrder
from services.sql import Read, Results, SqlAccess, Write

_MOST_UNPAID = 10_000
"""The most that `WAYBILL_UNPAID_ORDERS_PER_USER` can be."""


class PlacingRepository(SqlAccess):
    """Writes groups of orders."""

    @staticmethod
    def references(sought: Sequence[tuple[int, str]]) -> Read[Collection[tuple[int, str]]]:
        """Those of the references that their buyers have used for an order, as pairs of buyer and reference."""
        parameters = {"buyer_ids": [buyer_id for buyer_id, _ in sought], "names": [name for _, name in sought]}
        return Read(queries.USED_REFERENCES, parameters, _used)

    @staticmethod
    def unpaid(buyer_ids: Sequence[int]) -> Read[dict[int, int]]:
        """How many orders of each of these buyers await payment, counted up to the largest quota there can be."""
        return Read(queries.UNPAID, {"unpaid_buyer_ids": list(buyer_ids), "most_unpaid": _MOST_UNPAID}, _numbers)

    @staticmethod
    def placing(orders: Sequence[NewOrder]) -> Write:
        """Write orders, their lines and their first transitions.

        Raises `IntegrityError` if a buyer has used one of the references before.
        """
        lines = [(order, number, item) for order in orders for number, item in enumerate(order.items, start=1)]
        parameters = {
            "ids": [order.id for order in orders],
            "buyer_ids": [order.buyer_id for order in orders],
            "statuses": [order.status.value for order in orders],
            "totals": [order.total for order in orders],
            "item_counts": [len(order.items) for order in orders],
            "lasting": [order.expires_in for order in orders],
            "ats": [order.at for order in orders],
            "actors": [order.actor for order in orders],
            "of_orders": [order.id for order, _, _ in lines],
            "numbers": [number for _, number, _ in lines],
            "each_unit_price": [item.unit_price for _, _, item in lines],
            **{f"each_{name}": [getattr(order.wanted, name) for order in orders] for name in ORDER_FIELDS},
            **{f"each_{name}": [getattr(item.wanted, name) for _, _, item in lines] for name in ITEM_FIELDS},
        }
        return Write(queries.PLACE_ALL, parameters, wanted=len(orders))


def _numbers(results: Results) -> dict[int, int]:
    (numbers,) = results
    return dict(numbers)


def _used(results: Results) -> Collection[tuple[int, str]]:
    (references,) = results
    return {(buyer_id, name) for buyer_id, name in references}
