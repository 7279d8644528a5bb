"""SQL statements about products and stock."""

from services.sql import Reading, Statement

# The extension's operators must be qualified with its schema, which is not in the search path.
TRIGRAMS = Statement("""
    SELECT quote_ident(nspname) AS schema FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'pg_trgm'
""")

_FOR_SALE = """
    SELECT products.id, products.seller_id, products.sku, products.name, products.price,
        products.is_active AND products.deleted_at IS NULL AND users.is_active AND users.deleted_at IS NULL
            AND accounts.closed_at IS NULL AS is_active,
        accounts.id AS seller_account_id
    FROM products
    JOIN users ON users.id = products.seller_id
    JOIN accounts ON accounts.user_id = products.seller_id
    WHERE products.id = ANY(CAST(:ids AS bigint[]))
"""
FOR_SALE = Statement(_FOR_SALE)
SELLING = Reading(
    f"for_sale AS MATERIALIZED ({_FOR_SALE})",
    results={"for_sale": ("id", "seller_id", "sku", "name", "price", "is_active", "seller_account_id")},
)

LOCK_STOCK = Statement("""
    SELECT product_id, on_hand - reserved AS available FROM inventory
    WHERE product_id = ANY(CAST(:ids AS bigint[])) ORDER BY product_id FOR NO KEY UPDATE
""")

CHANGE_STOCK = Statement("""
    WITH moved AS (
        UPDATE inventory SET on_hand = inventory.on_hand + change.on_hand,
            reserved = inventory.reserved + change.reserved, recorded = recorded + 1
        FROM unnest(CAST(:ids AS bigint[]), CAST(:on_hand AS bigint[]), CAST(:reserved AS bigint[]))
            AS change(product_id, on_hand, reserved)
        WHERE inventory.product_id = change.product_id
        RETURNING change.product_id, change.on_hand
    )
    INSERT INTO stock_movements (product_id, kind, order_id, pieces, actor)
    SELECT product_id, :kind, CAST(:order_id AS uuid), on_hand, :actor FROM moved
""")

# Reserved pieces are still on hand.
RELEASE_STOCK = Statement("""
    UPDATE inventory SET reserved = inventory.reserved - released.pieces
    FROM unnest(CAST(:ids AS bigint[]), CAST(:pieces AS bigint[])) AS released(product_id, pieces)
    WHERE inventory.product_id = released.product_id
""")
