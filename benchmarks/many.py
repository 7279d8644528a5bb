"""A database of any size, made by set-based SQL: books that balance, and a few users and sellers with very much.

What makes lists slow is uneven data, so the big buyer, the big seller and the big category have a large share of the
rows, and most of it is old: a list of them from the newest row on cannot expect to find them near.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg

from benchmarks.sessions import BEGIN


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows there are. There are about three entries for each order, with those of top-ups."""

    users: int
    products: int
    orders: int
    others: int
    """Categories are a twentieth of it; of adjustments, dead letters, deferred and waiting events there are as many."""

    @classmethod
    def of(cls, orders: int) -> "Size":
        return cls(users=orders // 5, products=orders // 2, orders=orders, others=max(500, orders // 50))


BIG_SELLER, BIG_BUYER = 1, 2
"""The numbers of the users with very much. Numbers begin at 1 and are counted from the lowest id."""

# Valid rows: checking each reference would take longer than the benchmark. Triggers do not fire either.
_PREPARE = """
    CREATE FUNCTION pg_temp.id_of(at timestamptz, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
        SELECT CAST(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '8' || substr(md5(n::text), 4, 15) AS uuid)
    $$;
    SET session_replication_role = replica;
    SET synchronous_commit = off;
    SET maintenance_work_mem = '512MB';
    SET work_mem = '128MB'
"""

_SHOP = """
    INSERT INTO users (email, full_name, hashed_password, role, is_active, created_at, deleted_at)
    SELECT format('user%s@example.com', n), format('%s %s', (ARRAY['Ada','Grace','Alan','Edsger'])[1 + n % 4], n), '!',
        CASE WHEN n % 1000 = 3 THEN 'operator' ELSE 'customer' END, n % 100 <> 7,
        now() - ({users} - n) * interval '1 minute', CASE WHEN n % 50 = 9 THEN now() END
    FROM generate_series(1, {users}) AS n;
    INSERT INTO accounts (user_id) SELECT id FROM users ORDER BY id;

    INSERT INTO categories (name) SELECT format('Category %s', n) FROM generate_series(1, {categories}) AS n;
    -- The big seller's products are those with n % 10 < 3; half of all are in the first category.
    INSERT INTO products (seller_id, category_id, sku, name, price, is_active, created_at)
    SELECT user_one.id - 1 + CASE WHEN n % 10 < 3 THEN {big_seller} ELSE 3 + n * 31 % ({users} / 2 - 2) * 2 END,
        category_one.id + CASE WHEN n % 2 = 0 THEN 0 ELSE n % {categories} END, format('SKU-%s', n),
        format('%s %s %s', (ARRAY['Brass','Wooden','Paper','Glass','Tin'])[1 + n % 5],
            (ARRAY['lantern','chair','box','bowl'])[1 + n % 4], substr(md5(n::text), 1, 6)),
        1 + n * 37 % 20000 / 100.0, n % 20 <> 11, now() - ({products} - n) * interval '30 seconds'
    FROM generate_series(1, {products}) AS n, (SELECT min(id) AS id FROM users) AS user_one,
        (SELECT min(id) AS id FROM categories) AS category_one;
"""

# The moves of credits, in the order in which they happened. An order has one or two lines, each of a different seller
# most of the time; only the older half of the orders is of the big buyer and the big seller.
_ORDERS = """
    CREATE TEMP TABLE placed AS
    SELECT n, at, pg_temp.id_of(at, n) AS id,
        user_one.id - 1 + CASE WHEN n % 5 = 0 AND n < {orders} / 2 THEN {big_buyer}
            ELSE 4 + n * 7919 % ({users} / 2 - 2) * 2 END AS buyer_id,
        CASE WHEN n % 37 = 0 THEN 'rejected' WHEN n % 53 = 0 THEN 'confirmed' WHEN n % 101 = 0 THEN 'awaiting_payment'
            ELSE 'fulfilled' END AS status
    FROM generate_series(1::bigint, {orders}) AS n, (SELECT min(id) AS id FROM users) AS user_one,
        LATERAL (SELECT now() - ({orders} - n) * (interval '1 year' / {orders}) AS at) AS time;
    CREATE TEMP TABLE line AS
    SELECT placed.n, placed.id AS order_id, status, buyer_id, at, line, products.id AS product_id, seller_id, price
    FROM placed CROSS JOIN (SELECT min(id) AS id FROM products) AS product_one
    CROSS JOIN LATERAL generate_series(1, 1 + n % 2) AS line
    CROSS JOIN LATERAL (SELECT (n * 6151 + line * 104729) % {products} AS of) AS chosen
    JOIN products ON products.id = product_one.id - 1
        + CASE WHEN n < {orders} / 2 THEN 1 + chosen.of ELSE 3 + chosen.of / 10 * 10 % ({products} - 10) + n % 7 END;

    INSERT INTO orders (id, buyer_id, status, total, item_count, reference, expires_at, created_at, updated_at)
    SELECT order_id, buyer_id, status, sum(price), count(*), CASE WHEN n % 4 = 0 THEN 'INV-' || n END,
        CASE status WHEN 'awaiting_payment' THEN now() + interval '1 day' END, at, at
    FROM line GROUP BY n, order_id, buyer_id, status, at ORDER BY n;
    INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
    SELECT order_id, line, product_id, 1, price FROM line ORDER BY n, line;
    INSERT INTO order_sellers (seller_id, order_id) SELECT DISTINCT seller_id, order_id FROM line ORDER BY 2;
    INSERT INTO order_transitions (order_id, from_status, to_status, created_at)
    SELECT placed.id, from_status, to_status, at FROM placed CROSS JOIN LATERAL (VALUES
        (1, NULL, 'pending', status <> 'awaiting_payment'), (1, NULL, 'awaiting_payment', status = 'awaiting_payment'),
        (2, 'pending', 'confirmed', status IN ('confirmed', 'fulfilled')),
        (2, 'pending', 'rejected', status = 'rejected'),
        (3, 'confirmed', 'fulfilled', status = 'fulfilled')) AS step(number, from_status, to_status, happened)
    WHERE happened ORDER BY n, number;
    INSERT INTO inventory (product_id, on_hand, reserved)
    SELECT products.id, 1000000, count(line.line) FROM products
    LEFT JOIN line ON line.product_id = products.id AND line.status = 'confirmed' GROUP BY products.id;
    INSERT INTO stock_movements (product_id, kind, pieces) SELECT product_id, 'opening', on_hand FROM inventory;
    INSERT INTO order_days (day, type, orders, amount)
    SELECT at::date, 'order.placed', count(DISTINCT n), sum(price) FROM line GROUP BY at::date;
"""

_LEDGER = """
    CREATE TEMP TABLE move AS
    SELECT 0::bigint AS n, gen_random_uuid() AS id, NULL::uuid AS order_id, issuance.id AS debit, accounts.id AS credit,
        1000000000.00 AS amount, 'top_up' AS kind, now() - interval '2 years' + accounts.id * interval '1 ms' AS at
    FROM accounts, accounts AS issuance WHERE accounts.user_id IS NOT NULL AND issuance.system_name = 'issuance';
    INSERT INTO move
    SELECT n, gen_random_uuid(), order_id, buyer.id, seller.id, sum(price), 'order', at
    FROM line JOIN accounts AS buyer ON buyer.user_id = buyer_id JOIN accounts AS seller ON seller.user_id = seller_id
    WHERE status IN ('confirmed', 'fulfilled') GROUP BY n, order_id, buyer.id, seller.id, at;

    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id,
        created_at, resolved_at)
    SELECT id, debit, credit, amount, kind, 'posted', amount, order_id, at, at FROM move ORDER BY at;
    INSERT INTO entries (account_id, version, transfer_id, amount, balance, created_at)
    SELECT account_id, row_number() OVER running, id, side.amount, sum(side.amount) OVER running, at
    FROM move, LATERAL (VALUES (debit, -amount), (credit, amount)) AS side(account_id, amount)
    WINDOW running AS (PARTITION BY account_id ORDER BY at, n, id ROWS UNBOUNDED PRECEDING);
    UPDATE accounts SET posted = entry.posted, version = entry.version FROM (
        SELECT account_id, sum(amount) AS posted, max(version) AS version FROM entries GROUP BY account_id
    ) AS entry WHERE entry.account_id = accounts.id;
"""

_REST = """
    INSERT INTO events (id, type, version, aggregate, payload, occurred_at)
    SELECT id, 'order.placed', 1, 'order/' || id, jsonb_build_object('order_id', id), at FROM placed
    WHERE n % 5 = 0 ORDER BY n;
    INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body)
    SELECT buyer_id, 'POST', '/v1/credits', id::text, '', 201, '{{}}', '{{}}' FROM placed WHERE n % 10 = 0;
    CREATE TEMP TABLE queued AS
    SELECT kind, n, pg_temp.id_of(now() - interval '1 hour', kind * {others} + n) AS id,
        CASE kind WHEN 0 THEN 'thing/' || n ELSE (ARRAY['reminder/','dead/'])[kind] || n % 1000 END AS aggregate,
        CASE WHEN kind > 0 AND n % 100 = 0 THEN 'rare' ELSE (ARRAY['thing','reminder','fatal'])[1 + kind] END AS type
    FROM generate_series(0, 2) AS kind, generate_series(1, {others}) AS n;
    INSERT INTO events (id, type, version, aggregate, payload) SELECT id, type, 1, aggregate, '{{}}' FROM queued;
    INSERT INTO outbox (event_id, aggregate, type, version)
    SELECT id, aggregate, type, 1 FROM queued WHERE kind = 0 ORDER BY n;
    INSERT INTO outbox (event_id, aggregate, type, version, available_at, waits)
    SELECT id, aggregate, type, 1, now() + (1 + n * 7919 % {others}) * interval '1 minute', 'asked'
    FROM queued WHERE kind = 1 ORDER BY n;
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, reason, died_at)
    SELECT 1000000000 + n, id, aggregate, type, 5, 'ValueError: no',
        CASE type WHEN 'rare' THEN 'rare' ELSE 'common' END,
        CASE type WHEN 'rare' THEN 'time_limit' ELSE 'handler_error' END, now() - n * interval '1 minute'
    FROM queued WHERE kind = 2;
    INSERT INTO adjustments (id, account_id, amount, reason, state, needs_approval, requested_by, decided_by,
        created_at, decided_at)
    SELECT pg_temp.id_of(at, n),
        account_one.id + CASE WHEN n % 2 = 0 THEN 0 ELSE n % 1000 END, 5, 'because',
        CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'rejected' END, true, 3 + n % 10,
        CASE WHEN n % 100 <> 0 THEN 1 END, at, CASE WHEN n % 100 <> 0 THEN at END
    FROM generate_series(1, {others}) AS n,
        (SELECT min(id) AS id FROM accounts WHERE user_id IS NOT NULL) AS account_one,
        LATERAL (SELECT now() - ({others} - n) * interval '1 minute' AS at) AS time
"""


def fill(url: str, size: Size) -> None:
    """Fill a migrated, empty database, and vacuum and analyze it. The role must be a superuser's."""
    values = {
        "users": size.users,
        "products": size.products,
        "orders": size.orders,
        "others": size.others,
        "categories": size.others // 20,
        "big_seller": BIG_SELLER,
        "big_buyer": BIG_BUYER,
    }
    with psycopg.connect(url, autocommit=True) as connection:
        for part in (_PREPARE, _SHOP, _ORDERS, _LEDGER, _REST):
            connection.execute(part.format(**values).encode())
            # The next part joins what this one wrote.
            connection.execute("ANALYZE")
        connection.execute(BEGIN)
        connection.execute("VACUUM ANALYZE")


TIMES = ("2020-01-01T00:00:00Z", "2026-06-01T00:00:00Z", "2099-01-01T00:00:00Z")
_OF_ENTRIES = {"created_at": TIMES, "kind": ("order", "top_up", "reversal")}
_OF_ORDERS = {
    "status": ("fulfilled", "rejected", "pending"),
    "total": ("0.01", "150.00", "9999.00"),
    "reference": ("INV-4", "INV-", "none"),
    "buyer_id": ("2", "4", "999999"),
    "created_at": TIMES,
    "updated_at": TIMES,
}
_OF_ACTS = {
    "actor": ("user:1", "user:7", "none"),
    "user_id": ("1", "7", "999999"),
    "action": ("user.signed_in", "credits.top_up", "key.made"),
    "object": ("user/1", "account/7", "none"),
    "at": TIMES,
}
_OF_TRANSFERS = {
    "state": ("posted", "pending", "voided"),
    "amount": ("0.01", "150.00", "9999.00"),
    "from_user_id": ("1", "2", "999999"),
    "to_user_id": ("2", "7", "999999"),
    "created_at": TIMES,
}
VALUES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "/v1/products": {
        "category_id": ("1", "7", "999999"),
        "seller_id": ("1", "5", "999999"),
        "sku": ("SKU-77", "none"),
        "name": ("Brass lantern", "lantern a87ff6", "none"),
        "price": ("0.01", "100.00", "9999.00"),
        "created_at": TIMES,
    },
    "/v1/categories": {"name": ("Category 3", "Category", "none")},
    "/v1/users": {
        "email": ("user77@example.com", "user", "none"),
        "full_name": ("Ada 44", "Grace", "none"),
        "role": ("customer", "operator"),
        "is_active": ("true", "false"),
        "created_at": TIMES,
    },
    "/v1/users/me/products": {
        "is_active": ("true", "false"),
        "category_id": ("1", "7", "999999"),
        "sku": ("SKU-77", "none"),
        "name": ("Brass lantern", "lantern a87ff6", "none"),
        "price": ("0.01", "100.00", "9999.00"),
        "created_at": TIMES,
    },
    "/v1/transfers": {**_OF_TRANSFERS, "kind": ("transfer", "top_up", "reversal")},
    "/v1/holds": {**_OF_TRANSFERS, "expires_at": TIMES},
    "/v1/orders": _OF_ORDERS,
    "/v1/orders?as=seller": {name: one for name, one in _OF_ORDERS.items() if name not in ("reference", "total")},
    "/v1/orders.csv": _OF_ORDERS,
    "/v1/orders.ndjson": _OF_ORDERS,
    "/v1/accounts/me/statement": _OF_ENTRIES,
    "/v1/accounts/me/statement.csv": _OF_ENTRIES,
    "/v1/adjustments": {
        "user_id": ("1", "7", "999999"),
        "requested_by": ("5", "999999"),
        "state": ("rejected", "pending", "applied"),
        "created_at": TIMES,
    },
    "/v1/audit-log": _OF_ACTS,
    "/v1/audit-log.csv": _OF_ACTS,
    "/v1/audit-log.ndjson": _OF_ACTS,
    "/v1/operations/bulk-actions": {
        "action": ("replay", "bury"),
        "state": ("finished", "cancelled", "running"),
        "created_at": TIMES,
    },
    "/v1/operations/dead-letters": {
        "aggregate": ("dead/7", "none"),
        "type": ("fatal", "rare", "none"),
        "fingerprint": ("common", "rare", "none"),
        "reason": ("handler_error", "time_limit", "buried"),
        "died_at": TIMES,
    },
    "/v1/operations/waiting": {"waits": ("asked", "retry", "unknown")},
    "/v1/operations/waiting?reason=behind": {"type": ("reminder", "rare", "none"), "waits": ("asked", "behind")},
    "/v1/operations/deferred": {
        "aggregate": ("reminder/7", "none"),
        "type": ("reminder", "rare", "none"),
        "available_at": TIMES,
    },
}
"""Values to filter each list by: of most rows, of few and of none."""


def values_of(path: str, field: str, operator: str) -> Sequence[str]:
    """What to write behind this operator. Raises `KeyError` for a list or a field without values."""
    values = VALUES[path][field]
    match operator:
        case "in":
            return [",".join(values)]
        case "is_null":
            return ["true", "false"]
        case _:
            return values
