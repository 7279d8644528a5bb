"""Test data, made by set-based SQL: a shop, and orders that wait for a worker, as the API would leave them."""

from dataclasses import dataclass

import psycopg

from benchmarks.rows import INTO_LOG, queue
from benchmarks.sessions import BEGIN
from services.fields import new_id

SELLERS = 10
PRODUCTS = 1000
EARLIER_ORDERS = 20_000
"""A shop with a history, so that the planner never has to guess from an empty table."""
_ORDERS_A_STEP = 10_000

_SHOP = """
    INSERT INTO users (email, full_name, hashed_password)
    SELECT format('user%s@example.com', n), format('User %s', n), '!' FROM generate_series(1, {sellers} + {buyers}) AS n
    ORDER BY n;
    INSERT INTO accounts (user_id) SELECT id FROM users ORDER BY id;

    -- Ten million credits each, issued in a top-up, so that the books balance.
    CREATE TEMP TABLE top_up AS
    SELECT gen_random_uuid() AS id, issuance.id AS issuance_id, accounts.id AS account_id, 10000000.00 AS amount,
        row_number() OVER (ORDER BY accounts.id) AS n
    FROM accounts JOIN accounts AS issuance ON issuance.system_name = 'issuance' WHERE accounts.user_id IS NOT NULL;
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
    SELECT id, issuance_id, account_id, amount, 'top_up', 'posted', amount, now() FROM top_up;
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT issuance_id, n, id, -amount, -amount * n FROM top_up
    UNION ALL SELECT account_id, 1, id, amount, amount FROM top_up;
    UPDATE accounts SET posted = entry.posted, version = entry.version FROM (
        SELECT account_id, sum(amount) AS posted, max(version) AS version FROM entries GROUP BY account_id
    ) AS entry WHERE entry.account_id = accounts.id;

    INSERT INTO categories (name) VALUES ('Everything');
    INSERT INTO products (seller_id, category_id, sku, name, price)
    SELECT (SELECT min(id) FROM users) + n % {sellers}, (SELECT id FROM categories), format('SKU-%s', n),
        format('Product number %s', n), 1 + n % 20 + 0.25 FROM generate_series(1, {products}) AS n ORDER BY n;
    INSERT INTO inventory (product_id, on_hand) SELECT id, 1000000000 FROM products;
"""

_PLACE = f"""
    CREATE TEMP TABLE placed ON COMMIT DROP AS
    SELECT id, event_id, %(first_buyer)s + (n + %(first)s) %% %(buyers)s AS buyer_id, n + %(first)s AS n
    FROM unnest(%(ids)s, %(event_ids)s) WITH ORDINALITY AS new(id, event_id, n);

    CREATE TEMP TABLE line ON COMMIT DROP AS
    SELECT placed.id AS order_id, placed.buyer_id, line, products.id AS product_id,
        1 + (placed.n + line) %% 3 AS quantity, products.price, accounts.id AS account_id
    FROM placed CROSS JOIN generate_series(1, %(items)s) AS line
    JOIN products ON products.id = %(first_product)s + abs(hashint8(placed.n * 1000 + line)::bigint) %% %(products)s
    JOIN accounts ON accounts.user_id = products.seller_id;

    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT order_id, buyer_id, 'pending', sum(quantity * price), count(*) FROM line GROUP BY order_id, buyer_id
    ORDER BY order_id;
    INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
    SELECT order_id, line, product_id, quantity, price FROM line ORDER BY order_id, line;
    INSERT INTO order_sellers (seller_id, order_id)
    SELECT DISTINCT products.seller_id, order_id FROM line JOIN products ON products.id = product_id;
    INSERT INTO order_transitions (order_id, to_status) SELECT id, 'pending' FROM placed ORDER BY id;

    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT new.id, accounts.id, share.account_id, share.amount, 'order', 'pending', share.order_id,
        now() + interval '1 day'
    FROM (
        SELECT order_id, buyer_id, account_id, sum(quantity * price) AS amount,
            row_number() OVER (ORDER BY order_id, account_id) AS n
        FROM line GROUP BY order_id, buyer_id, account_id
    ) AS share
    JOIN accounts ON accounts.user_id = share.buyer_id
    JOIN unnest(%(transfer_ids)s) WITH ORDINALITY AS new(id, n) ON new.n = share.n;
    UPDATE accounts SET held = held + pending.amount FROM (
        SELECT buyer_id, sum(total) AS amount FROM orders JOIN placed USING (id, buyer_id) GROUP BY buyer_id
    ) AS pending WHERE accounts.user_id = pending.buyer_id;

    {INTO_LOG}
    SELECT event_id, 'order.placed', 1, 'order/' || orders.id, jsonb_build_object(
        'order_id', orders.id, 'buyer_id', orders.buyer_id, 'total', orders.total::text), event_id::text
    FROM placed JOIN orders USING (id) ORDER BY placed.event_id;
    INSERT INTO waiting SELECT n, event_id, 'order/' || id FROM placed;
"""


@dataclass(frozen=True, slots=True)
class Shop:
    """The buyers and the products for sale. Prices are in `products.price`."""

    buyer_ids: list[int]
    product_ids: list[int]


def open_shop(url: str, buyers: int, sellers: int = SELLERS) -> Shop:
    """Sellers with a thousand products between them and unlimited stock, and buyers with ten million credits each."""
    with psycopg.connect(url) as connection:
        connection.execute(_SHOP.format(sellers=sellers, buyers=buyers, products=PRODUCTS))
        connection.execute(BEGIN)
        user_ids = [row[0] for row in connection.execute("SELECT id FROM users ORDER BY id")]
        product_ids = [row[0] for row in connection.execute("SELECT id FROM products ORDER BY id")]
        connection.commit()
    _tidy(url, "users, sessions, accounts, products, inventory, transfers, entries")
    return Shop(user_ids[sellers:], product_ids)


def place_waiting(url: str, shop: Shop, orders: int, items: int) -> None:
    """Place orders as the API does, but set the outbox rows aside, and omit idempotency keys, which no worker reads."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE waiting (n bigint, event_id uuid, aggregate text)")
        # The rows are valid; checking every reference would take longer than the benchmark.
        connection.execute("SET session_replication_role = replica")
        for first in range(0, orders, _ORDERS_A_STEP):
            number = min(_ORDERS_A_STEP, orders - first)
            values = {
                "ids": [new_id() for _ in range(number)],
                "event_ids": [new_id() for _ in range(number)],
                "transfer_ids": [new_id() for _ in range(number * items)],
                "first_buyer": shop.buyer_ids[0],
                "buyers": len(shop.buyer_ids),
                "first": first,
                "items": items,
                "first_product": shop.product_ids[0],
                "products": len(shop.product_ids),
            }
            with psycopg.ClientCursor(connection) as cursor:
                cursor.execute(_PLACE.encode(), values)
            connection.commit()
    _tidy(url, "accounts, orders, order_items, order_transitions, transfers, events, waiting")


def release_waiting(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Insert the outbox rows in one commit."""
    queue(connection, "SELECT event_id, aggregate, 'order.placed', 1 FROM waiting ORDER BY n")


def _tidy(url: str, tables: str) -> None:
    # Only tables with rows: a plan that was made for an empty table scans all of it once it has grown.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"VACUUM ANALYZE {tables}".encode())
