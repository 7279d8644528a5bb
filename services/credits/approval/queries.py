"""SQL about movements that no one approved."""

from services.sql import Statement, Writing

# In this order: the operator, then the accounts by id. Their rows cannot take the place of these locks: the accounts'
# rows are locked later, together with the issuance account, in the order of their ids.
LOCK = Statement("""
    SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' unapproved ' || name, 0))
    FROM unnest(CAST(:names AS text[])) AS name
""")

# A statement of its own after LOCK: it sees what the previous holders of the locks have committed.
SUMS = Statement("""
    SELECT accounts.id AS account_id, user_id,
        (
            SELECT coalesce(sum(amount), 0) FROM unapproved_movements
            WHERE operator_id = :operator_id AND created_at > statement_timestamp() - CAST(:window AS interval)
        ) AS by_operator,
        (
            SELECT coalesce(sum(amount), 0) FROM unapproved_movements
            WHERE (debit_account_id = accounts.id OR credit_account_id = accounts.id)
            AND created_at > statement_timestamp() - CAST(:window AS interval)
        ) AS on_account
    FROM accounts WHERE id = ANY(CAST(:account_ids AS bigint[])) AND user_id IS NOT NULL
""")

# Both sides of a transfer that is to be reversed.
OWNERS = Statement("""
    SELECT user_id FROM accounts WHERE user_id IS NOT NULL AND id = ANY(ARRAY(
        SELECT CAST(:account_id AS bigint)
        UNION SELECT unnest(ARRAY[debit_account_id, credit_account_id]) FROM transfers WHERE id = :reverses
    ))
""")

RECORD = Writing(
    """
    unapproved AS (
        INSERT INTO unapproved_movements (transfer_id, operator_id, debit_account_id, credit_account_id, amount)
        SELECT id, CAST(:operator_id AS bigint), debit, credit, moved
        FROM unnest(CAST(:ids AS uuid[]), CAST(:debits AS bigint[]), CAST(:credits AS bigint[]),
            CAST(:amounts AS numeric[])) AS one(id, debit, credit, moved)
        RETURNING 1
    )
    """,
    counted="unapproved",
)
