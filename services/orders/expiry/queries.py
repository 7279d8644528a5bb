"""The SQL that finds orders that are due to expire."""

from services.sql import Statement

# The row comparison and ORDER BY match the index, so a slice reads only its own rows, not those of earlier slices.
UNPAID = Statement("""
    SELECT expires_at, id FROM orders
    WHERE expires_at <= now() AND (expires_at, id) > (CAST(:expires_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY expires_at, id LIMIT :limit
""")

HELD = Statement("""
    SELECT expires_at, id, order_id FROM transfers
    WHERE state = 'pending' AND order_id IS NOT NULL AND expires_at <= now()
    AND (expires_at, id) > (CAST(:expires_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY expires_at, id LIMIT :limit
""")

# The conditions are checked on the locked row: the order may have been paid since it was found.
LOCK = Statement("""
    SELECT id, buyer_id, status, total, coalesce(expires_at <= now(), false) AS is_due FROM orders
    WHERE id = ANY(CAST(:ids AS uuid[])) AND status IN ('awaiting_payment', 'pending')
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
