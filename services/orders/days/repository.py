"""All SQL about orders by day."""

from collections.abc import Sequence
from datetime import date

from services.orders.days.schemas import Happened
from services.sql import Row, SqlAccess, Statement

# In the order of the key, so that two transactions lock the same rows in the same order.
_ADD = Statement("""
    INSERT INTO order_days AS known (day, type, orders, amount)
    SELECT day, type, count(*), sum(coalesce(happened.amount, orders.total, 0))
    FROM unnest(CAST(:days AS date[]), CAST(:types AS text[]), CAST(:orders AS uuid[]), CAST(:amounts AS numeric[]))
        AS happened(day, type, order_id, amount)
    LEFT JOIN orders ON orders.id = happened.order_id
    GROUP BY day, type ORDER BY day, type
    ON CONFLICT (day, type) DO UPDATE
    SET orders = known.orders + excluded.orders, amount = known.amount + excluded.amount
""")

_FORGET = Statement("DELETE FROM order_days WHERE day >= :day")

_NEWEST = Statement("""
    SELECT day, type, orders, amount FROM order_days
    WHERE day > CAST(timezone('UTC', statement_timestamp()) AS date) - CAST(:days AS integer)
    ORDER BY day DESC, type
""")


class OrderDayRepository(SqlAccess):
    """Orders by day."""

    async def add(self, happened: Sequence[Happened]) -> None:
        """Count these events."""
        await self.sql.run(
            _ADD,
            days=[one.day for one in happened],
            types=[one.type for one in happened],
            orders=[one.order_id for one in happened],
            amounts=[one.amount for one in happened],
        )

    async def forget(self, day: date) -> None:
        """Delete this day and all later ones."""
        await self.sql.run(_FORGET, day=day)

    async def newest(self, days: int) -> Sequence[Row]:
        """The rows of the last `days` days, today included, the newest first."""
        return await self.sql.fetch(_NEWEST, days=days)
