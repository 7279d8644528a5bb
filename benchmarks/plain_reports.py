"""The baseline of `benchmarks.reports`: the same sums, by plain asyncpg in the fewest statements.

It reads the log by position, as if transactions committed in that order: one that commits late would be skipped. It
knows no lease, no retention and no restored database. The place is stored with the effects, as everywhere.
"""

from typing import Any

import asyncpg

from services.orders.events import OrderConfirmed, OrderRefunded
from services.reports import queries
from services.sql import Statement

_VISIBLE = (
    "AND NOT pg_visible_in_snapshot(transaction_id, CAST(CAST(:seen AS text) AS pg_snapshot))",
    "AND pg_visible_in_snapshot(transaction_id, CAST(CAST(:reading AS text) AS pg_snapshot))",
)

_DAYS = ("seller_ids", "days", "product_ids", "types", "orders", "pieces", "amounts")
_WAITS = ("seller_id", "day", "orders", "milliseconds", "slowest", *queries.WITHIN)


async def count(primary_url: str, analytics_url: str, types: list[str], batch: int, last: int) -> None:
    """Count every event up to the position `last`."""
    statement = _gather()
    primary, analytics = await asyncpg.connect(primary_url), await asyncpg.connect(analytics_url)
    await analytics.execute(
        "INSERT INTO log_places (name, series, number, seen, position) VALUES ('plain', gen_random_uuid(), 0, '', 0)"
    )
    position = 0
    while position < last:
        values = {
            "after": position,
            "until": last,
            "types": types,
            "limit": batch,
            "confirmed": OrderConfirmed.type,
            "refunded": OrderRefunded.type,
        }
        row = list((await primary.fetchrow(statement.sql, *statement.arguments(values))).values())
        position = row[1][0] or last
        days, waits = row[3:10], row[10:]
        async with analytics.transaction():
            if days[0]:
                await _add(analytics, queries.ADD_DAYS, dict(zip(_DAYS, days, strict=True)))
            if waits[0]:
                await _add(analytics, queries.ADD_WAITS, dict(zip(_WAITS, waits, strict=True)))
            await analytics.execute("UPDATE log_places SET position = $1 WHERE name = 'plain'", position)
    await primary.close()
    await analytics.close()


def _gather() -> Statement:
    """The product's statement without what makes a late commit visible."""
    text = queries.GATHER.text
    for condition in _VISIBLE:
        assert condition in text
        text = text.replace(condition, "")
    arrays = [
        f"(SELECT array_agg({column}) FROM {name})"
        for name, columns in queries.GATHER.results.items()
        for column in columns
    ]
    return Statement(f"WITH {text} SELECT " + ", ".join(f"{one} AS c{n}" for n, one in enumerate(arrays)))


async def _add(connection: asyncpg.Connection, statement: Statement, values: dict[str, Any]) -> None:
    await connection.execute(statement.sql, *statement.arguments(values))
