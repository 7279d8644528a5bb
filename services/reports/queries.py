"""The SQL of reports: what events come to, in the primary, and how it is stored and read, in the analytics database."""

from collections.abc import Sequence
from functools import lru_cache

from services.outbox.log.queries import PAGE
from services.sql import Reading, Statement

# The first 48 bits of an event's id are its time, which also decides in which month it is stored.
_MADE_AT = "CAST(CAST('x0000' || left(replace(CAST(id AS text), '-', ''), 12) AS bit(64)) AS bigint)"

_WITHIN = (("1s", 1), ("10s", 10), ("1m", 60), ("10m", 600), ("1h", 3600))
WITHIN = tuple(f"within_{name}" for name, _ in _WITHIN)
"""The columns that count the orders that were confirmed in time."""

_COUNTED = ", ".join(
    f"count(*) FILTER (WHERE waited <= {1000 * seconds}) AS within_{name}" for name, seconds in _WITHIN
)

# An event says which order it is about, and a refund which pieces of which lines. The lines of an order never change,
# and an order becomes pending only once.
GATHER = Reading(
    f"""
    fresh AS MATERIALIZED (
        SELECT position, type, payload, CAST(payload->>'order_id' AS uuid) AS order_id, {_MADE_AT} AS made_at
        FROM ({PAGE}) AS page
    ), happened AS MATERIALIZED (
        SELECT *, CAST(timezone('UTC', to_timestamp(made_at / 1000.0)) AS date) AS day FROM fresh
    ), lines AS MATERIALIZED (
        SELECT position, day, type, seller_id, product_id, moved.pieces, moved.pieces * unit_price AS amount
        FROM happened JOIN order_items USING (order_id) JOIN products ON products.id = order_items.product_id
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN type = :refunded THEN CAST(payload->'pieces'->>CAST(line AS text) AS bigint)
                ELSE quantity
            END AS pieces
        ) AS moved
        WHERE moved.pieces IS NOT NULL
    ), sums AS MATERIALIZED (
        SELECT day, type, coalesce(seller_id, 0) AS seller_id, coalesce(product_id, 0) AS product_id,
            count(DISTINCT position) AS orders, sum(pieces) AS pieces, sum(amount) AS amount
        FROM lines GROUP BY GROUPING SETS ((day, type, seller_id, product_id), (day, type, seller_id), (day, type))
    ), confirmed AS MATERIALIZED (
        SELECT position, day,
            greatest(0, made_at - CAST(1000 * extract(epoch FROM pending.created_at) AS bigint)) AS waited
        FROM happened JOIN order_transitions AS pending USING (order_id)
        WHERE type = :confirmed AND to_status = 'pending'
    ), waits AS MATERIALIZED (
        SELECT seller_id, day, count(*) AS orders, CAST(sum(waited) AS bigint) AS milliseconds,
            max(waited) AS slowest, {_COUNTED}
        FROM (
            SELECT 0 AS seller_id, day, waited FROM confirmed
            UNION ALL
            SELECT seller_id, confirmed.day, waited
            FROM confirmed JOIN (
                SELECT DISTINCT position, seller_id FROM lines WHERE type = :confirmed
            ) AS sold USING (position)
        ) AS one
        GROUP BY seller_id, day
    ), page AS MATERIALIZED (
        SELECT count(*) AS number, max(position) AS last, max(made_at) AS newest FROM happened
    )
    """,  # noqa: S608
    results={
        "page": ("number", "last", "newest"),
        "sums": ("seller_id", "day", "product_id", "type", "orders", "pieces", "amount"),
        "waits": ("seller_id", "day", "orders", "milliseconds", "slowest", *WITHIN),
    },
)

# In the order of the keys, as everywhere.
ADD_DAYS = Statement("""
    INSERT INTO report_days AS known (seller_id, day, product_id, type, orders, pieces, amount)
    SELECT * FROM unnest(
        CAST(:seller_ids AS bigint[]), CAST(:days AS date[]), CAST(:product_ids AS bigint[]), CAST(:types AS text[]),
        CAST(:orders AS bigint[]), CAST(:pieces AS bigint[]), CAST(:amounts AS numeric[])
    ) ORDER BY 1, 2, 3, 4
    ON CONFLICT (seller_id, day, product_id, type) DO UPDATE
    SET orders = known.orders + excluded.orders, pieces = known.pieces + excluded.pieces,
        amount = known.amount + excluded.amount
""")

_NUMBERS = ("orders", "milliseconds", *WITHIN)

ADD_WAITS = Statement(f"""
    INSERT INTO report_waits AS known (seller_id, day, orders, milliseconds, slowest, {", ".join(WITHIN)})
    SELECT * FROM unnest(
        CAST(:seller_id AS bigint[]), CAST(:day AS date[]), CAST(:orders AS bigint[]), CAST(:milliseconds AS bigint[]),
        CAST(:slowest AS bigint[]), {", ".join(f"CAST(:{name} AS bigint[])" for name in WITHIN)}
    ) ORDER BY 1, 2
    ON CONFLICT (seller_id, day) DO UPDATE
    SET slowest = greatest(known.slowest, excluded.slowest),
        {", ".join(f"{name} = known.{name} + excluded.{name}" for name in _NUMBERS)}
""")  # noqa: S608

REVISION = Statement("SELECT max(version_num) AS revision FROM alembic_version")

PLACE = Statement("SELECT series, number, read_id, seen, reading, position, until FROM log_places WHERE name = :name")

# Only the consumer's very first read finds no row.
BEGIN = Statement("""
    INSERT INTO log_places (name, series, number, read_id, seen, reading, position, until)
    VALUES (:name, :series, :number, :read_id, :seen, :reading, :position, :until) ON CONFLICT DO NOTHING
""")

MOVE = Statement("""
    UPDATE log_places SET number = :number, read_id = :read_id, seen = :seen, reading = :reading, position = :position,
        until = :until
    WHERE name = :name AND series = :series AND number = :before
""")

NOTE_NEWEST = Statement("UPDATE log_places SET newest = greatest(newest, :newest) WHERE name = :name")

START_OVER = Statement("""
    INSERT INTO log_places (name, series, number, seen, position) VALUES (:name, :series, 0, :seen, 0)
    ON CONFLICT (name) DO UPDATE SET series = excluded.series, number = 0, read_id = NULL,
        seen = excluded.seen, reading = NULL, position = 0, until = NULL
""")

FORGET_DAYS = Statement("DELETE FROM report_days WHERE day >= :day")
FORGET_WAITS = Statement("DELETE FROM report_waits WHERE day >= :day")
OLDEST_DAY = Statement("SELECT min(day) AS day FROM report_days")

PROGRESS = Statement("SELECT newest, seen = :nothing AS rebuilding FROM log_places WHERE name = :name")

_PERIOD = "day BETWEEN :first AND :last"

STATUSES = Statement(f"""
    SELECT day, type, orders, amount FROM report_days
    WHERE {_PERIOD} AND seller_id = :seller_id AND product_id = 0 ORDER BY day, type
""")  # noqa: S608

WAITS = Statement(f"""
    SELECT day, orders, milliseconds, slowest, {", ".join(WITHIN)} FROM report_waits
    WHERE {_PERIOD} AND seller_id = :seller_id ORDER BY day
""")  # noqa: S608

KEYS = {"day": "date", "seller_id": "bigint", "product_id": "bigint"}
"""The columns that sales can be grouped by, with their types."""


@lru_cache
def sales(by: Sequence[str], *, of_products: bool, of_sellers: bool) -> Statement:
    """Sales, grouped by these columns and ordered by them, after a given group.

    Rows of single products if `of_products`, otherwise of sellers if `of_sellers`, otherwise of the whole shop.
    """
    keys = ", ".join(by)
    after = ", ".join(f"CAST(:after_{name} AS {KEYS[name]})" for name in by)
    totals = ", ".join(
        f"coalesce(sum({column}) FILTER (WHERE type = {kind}), 0) AS {kind.removeprefix(':')}_{column}"
        for kind in (":confirmed", ":refunded")
        for column in ("orders", "pieces", "amount")
    )
    return Statement(f"""
        SELECT {keys}, {totals} FROM report_days
        WHERE {_PERIOD} AND type = ANY(ARRAY[CAST(:confirmed AS text), CAST(:refunded AS text)])
        AND (CAST(:seller_id AS bigint) IS NULL OR seller_id = :seller_id)
        AND (CAST(:product_id AS bigint) IS NULL OR product_id = :product_id)
        AND seller_id {"> 0" if of_sellers or of_products else "= 0"} AND product_id {"> 0" if of_products else "= 0"}
        AND (:from_the_start OR ({keys}) > ({after}))
        GROUP BY {keys} ORDER BY {keys} LIMIT :limit
    """)  # noqa: S608
