"""SQL statements about transfers between users."""

from services.sql import Reading, Statement, without_waiting

# Not a join: its generic plan would read the whole table while that is small.
_PARTIES = """
    SELECT id AS account_id, user_id, posted, held, version, closed_at IS NOT NULL AS is_closed,
        now() AS at,
        (SELECT is_active AND deleted_at IS NULL AND accounts.closed_at IS NULL FROM users
            WHERE users.id = accounts.user_id) AS is_known
    FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[]))
"""
READ_PARTIES = Statement(_PARTIES)
_LOCK_PARTIES = f"{_PARTIES} ORDER BY id FOR NO KEY UPDATE"
LOCK_PARTIES = Statement(_LOCK_PARTIES)

# What is in the first list and not in the second is locked by another transaction.
LOCK_FREE_PARTIES = Reading(
    f"""
    parties AS MATERIALIZED (
        SELECT user_id, now() AS at FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[]))
    ), free_parties AS MATERIALIZED ({without_waiting(_LOCK_PARTIES)})
    """,  # noqa: S608
    results={
        "parties": ("user_id", "at"),
        "free_parties": ("account_id", "user_id", "posted", "held", "version", "is_closed", "is_known"),
    },
)

GET = Statement("""
    SELECT transfers.id, kind, state, amount, posted_amount, debit_account_id, credit_account_id, order_id, reverses,
        note, transfers.created_at, expires_at, resolved_at, payer.user_id AS from_user_id,
        payee.user_id AS to_user_id, coalesce(expires_at <= clock_timestamp(), false) AS is_due,
        (SELECT id FROM transfers AS reversal WHERE reversal.reverses = transfers.id) AS reversed_by
    FROM transfers
    JOIN accounts AS payer ON payer.id = debit_account_id
    JOIN accounts AS payee ON payee.id = credit_account_id
    WHERE transfers.id = :id
""")

# The transfer, then the accounts, so that nothing waits between reading the clock and posting. The accounts of an
# order's payment are not locked: it is resolved with its order, which is locked first.
LOCK = Statement("""
    WITH locked AS (
        SELECT debit_account_id, credit_account_id, order_id FROM transfers WHERE id = :id FOR NO KEY UPDATE
    )
    SELECT id FROM accounts
    WHERE id = ANY(ARRAY(
        SELECT unnest(ARRAY[debit_account_id, credit_account_id]) FROM locked WHERE order_id IS NULL
    ))
    ORDER BY id FOR NO KEY UPDATE
""")
