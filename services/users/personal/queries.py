"""Where personal data is: what an export has of each table, and the statements of an erasure.

Each table is in `SOURCES` or in `NOT_EXPORTED`, with the reason: `tests/api/test_personal_data.py` fails for a new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.sql import Statement

_OWN_TRANSFERS = "order_id IS NULL AND (debit_account_id = :account_id OR credit_account_id = :account_id)"
# Notes of the other kinds are reasons of the staff.
_NOTED = "'transfer', 'top_up'"
_OWN_ORDERS = "(SELECT id FROM orders WHERE buyer_id = :user_id)"
_STAFF = "It says which member of the staff did it, or why."


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a table in an export. `:user_id` is the user in `condition`, `:account_id` their account.

    The rows are read in the order of `key`, which is unique among them. All columns are exported but those in
    `without`, which says why.
    """

    table: str
    condition: str
    key: tuple[str, ...] = ("id",)
    without: Mapping[str, str] = field(default_factory=dict)


_SECRET = "It is a secret, or the hash of one."  # noqa: S105

SOURCES: Mapping[str, Source] = {
    "profile": Source("users", "id = :user_id", without={"hashed_password": _SECRET}),
    "sessions": Source("sessions", "user_id = :user_id"),
    "api_keys": Source("api_keys", "user_id = :user_id", without={"hash": _SECRET}),
    "second_factor": Source("totp_secrets", "user_id = :user_id", ("user_id",), {"sealed": _SECRET}),
    "unconfirmed_addresses": Source(
        "unverified_emails", "user_id = :user_id", without={"full_name": _SECRET, "hashed_password": _SECRET}
    ),
    "mails": Source("mails", "user_id = :user_id"),
    "role_requests": Source(
        "role_requests", "user_id = :user_id", without={"requested_by": _STAFF, "decided_by": _STAFF}
    ),
    "account": Source("accounts", "user_id = :user_id"),
    "entries": Source("entries", "account_id = :account_id", ("version",)),
    "transfers": Source("transfers", f"{_OWN_TRANSFERS} AND kind IN ({_NOTED})", without={"actor": _STAFF}),
    "corrections": Source(
        "transfers", f"{_OWN_TRANSFERS} AND kind NOT IN ({_NOTED})", without={"actor": _STAFF, "note": _STAFF}
    ),
    "payments": Source(
        "transfers", f"order_id IN {_OWN_ORDERS}", ("order_id", "id"), {"actor": _STAFF, "note": _STAFF}
    ),
    "adjustments": Source(
        "adjustments",
        "account_id = :account_id",
        without={"requested_by": _STAFF, "decided_by": _STAFF, "reason": _STAFF},
    ),
    "orders": Source("orders", "buyer_id = :user_id"),
    "order_lines": Source("order_items", f"order_id IN {_OWN_ORDERS}", ("order_id", "line")),
    "order_history": Source(
        "order_transitions", f"order_id IN {_OWN_ORDERS}", ("order_id", "id"), {"actor": _STAFF, "reason": _STAFF}
    ),
    "refunds": Source(
        "refunds", f"order_id IN {_OWN_ORDERS}", ("order_id", "id"), {"requested_by": _STAFF, "reason": _STAFF}
    ),
    "refund_lines": Source("refund_lines", f"order_id IN {_OWN_ORDERS}", ("refund_id", "line")),
    "products": Source("products", "seller_id = :user_id"),
    "sales": Source("order_sellers", "seller_id = :user_id", ("order_id",)),
    "stored_replies": Source(
        "idempotency_keys",
        "caller_id = :user_id",
        ("method", "path", "key"),
        {
            "fingerprint": "It is the hash of a request.",
            "headers": "They repeat ids and versions of rows that are exported.",
            "body": "It repeats rows that are exported.",
        },
    ),
    "acts": Source("audit_log", "user_id = :user_id", without={"hash": "It belongs to the chain."}),
    "acts_of_others": Source(
        "audit_log",
        "object IN ('user/' || CAST(:user_id AS bigint), 'account/' || CAST(:account_id AS bigint))"
        " AND user_id IS DISTINCT FROM :user_id",
        without=dict.fromkeys(("actor", "user_id", "address", "request_id", "reason"), _STAFF) | {"hash": "See acts."},
    ),
}
"""The parts of an export, in its order. A line of an export names its part."""

_ENGINE = "It is about the operation of the service. What its events are about is exported."

NOT_EXPORTED: Mapping[str, str] = {
    "audit_log_head": "It is the end of the chain.",
    "bulk_actions": "It says what the staff did to events, which is in the audit log as well.",
    "canaries": "Its row is about no one.",
    "history": "It holds sums of what workers did.",
    "categories": "They are the shop's.",
    "dead_letters": _ENGINE,
    "events": "The log repeats, with ids and amounts, what the exported rows say.",
    "failed_attempts": "It has hashes, which do not show whose they are, and expires after an hour.",
    "inventory": "It is about the pieces of a product.",
    "jobs": _ENGINE,
    "ledger_audits": "It has sums and differences of the books.",
    "log_consumers": _ENGINE,
    "log_origin": _ENGINE,
    "log_sinks": _ENGINE,
    "one_time_tokens": "It has the hashes of mailed tokens, with the address that the profile has, and expires.",
    "order_days": "It has sums for each day.",
    "outbox": _ENGINE,
    "outbox_actions": "It says what the staff did to events, which is in the audit log as well.",
    "outbox_errors": _ENGINE,
    "outbox_types": _ENGINE,
    "recovery_codes": "It has hashes of codes.",
    "refresh_tokens": "It has hashes of the tokens of sessions, which are exported.",
    "stock_movements": "It is about the pieces of a product.",
    "sweep_failures": _ENGINE,
    "unapproved_movements": "It repeats transfers, which are exported, for the limits of operators.",
    "workers": _ENGINE,
}
"""Tables that are not exported, and why."""

# Including a deleted user.
FIND = Statement("""
    SELECT id FROM users
    WHERE erased_at IS NULL AND (id = CAST(:user_id AS bigint) OR lower(email) = lower(CAST(:email AS text)))
""")

LOCK = Statement("""
    SELECT email, deleted_at IS NOT NULL AS deleted FROM users
    WHERE id = :user_id AND erased_at IS NULL FOR NO KEY UPDATE
""")

# Those that the erasure changes. Whoever locks an order and an account, such as a refund, locks the order first.
LOCK_ORDERS = Statement("""
    SELECT count(*) FROM (
        SELECT FROM orders WHERE buyer_id = :user_id AND reference IS NOT NULL ORDER BY id FOR NO KEY UPDATE
    ) AS locked
""")

ACCOUNT = Statement("SELECT id FROM accounts WHERE user_id = :user_id")

_OPEN = "status IN ('awaiting_payment', 'pending', 'confirmed')"

BLOCKED = Statement(f"""
    SELECT accounts.posted, accounts.held,
        (SELECT count(*) FROM transfers WHERE state = 'pending' AND credit_account_id = accounts.id) AS to_receive,
        (SELECT count(*) FROM orders WHERE buyer_id = :user_id AND {_OPEN}) AS bought,
        (SELECT count(*) FROM order_sellers JOIN orders ON orders.id = order_sellers.order_id
            WHERE seller_id = :user_id AND {_OPEN}) AS sold,
        (SELECT count(*) FROM adjustments WHERE account_id = accounts.id AND state = 'pending') AS adjustments
    FROM accounts WHERE user_id = :user_id
""")  # noqa: S608

# No address that can be delivered to (RFC 2606), and no hash that a password has.
_ERASE = Statement("""
    UPDATE users SET email = 'erased-' || id || '@erased.invalid', full_name = 'erased', hashed_password = 'erased',
        totp_since = NULL, is_active = false, role = 'customer', deleted_at = coalesce(deleted_at, now()),
        erased_at = now(), version = version + 1
    WHERE id = :user_id
""")

ERASE = (
    _ERASE,
    Statement("UPDATE orders SET reference = NULL WHERE buyer_id = :user_id AND reference IS NOT NULL"),
    # With their tokens, and with the mails to confirm an address.
    Statement("DELETE FROM sessions WHERE user_id = :user_id"),
    Statement("DELETE FROM unverified_emails WHERE user_id = :user_id"),
    Statement("DELETE FROM api_keys WHERE user_id = :user_id"),
    Statement("DELETE FROM totp_secrets WHERE user_id = :user_id"),
    Statement("DELETE FROM recovery_codes WHERE user_id = :user_id"),
    Statement("DELETE FROM one_time_tokens WHERE user_id = :user_id"),
    Statement("DELETE FROM mails WHERE user_id = :user_id"),
    # Those that others got cannot be found without reading all. They expire, after a day by default.
    Statement("DELETE FROM idempotency_keys WHERE caller_id = :user_id"),
)
"""What an erasure does, in this order, apart from mails to the address."""

ERASE_ADDRESS = Statement("DELETE FROM mails WHERE lower(email) = lower(:email)")
"""Mails to the address itself: one that says that the account has another address now, or that it is taken."""
