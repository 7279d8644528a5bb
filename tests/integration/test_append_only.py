"""What is written cannot be changed: the database refuses it, even for the owner of the tables."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors

Connection = psycopg.Connection[tuple[object, ...]]

TABLES = {
    "entries": "amount = amount",
    "order_transitions": "reason = ''",
    "refunds": "reason = ''",
    "refund_lines": "quantity = 1",
}


@pytest.fixture
def owner(database_url: str) -> Iterator[Connection]:
    """The owner of the tables, even a superuser."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("table", TABLES)
def test_append_only_tables_refuse_every_change(owner: Connection, table: str) -> None:
    for statement in (f"UPDATE {table} SET {TABLES[table]}", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(errors.RestrictViolation, match=f"on {table} is refused: what is written stays"):
            owner.execute(statement.encode())


def test_transfers_cannot_be_deleted(owner: Connection) -> None:
    for statement in ("DELETE FROM transfers", "TRUNCATE transfers CASCADE"):
        with pytest.raises(errors.RestrictViolation, match="is refused: what is written stays"):
            owner.execute(statement.encode())


POSTED = "state = 'posted', posted_amount = amount, resolved_at = now()"


def transfer(owner: Connection, state: str) -> object:
    """A transfer in the given state between two existing accounts."""
    transfer_id = uuid4()
    owner.execute("INSERT INTO accounts (system_name) VALUES ('other') ON CONFLICT DO NOTHING")
    owner.execute(
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount,"
        " expires_at, resolved_at) SELECT %s, min(id), max(id), 10, 'transfer', %s::text,"
        " CASE %s::text WHEN 'posted' THEN 4 END, now(), CASE WHEN %s::text <> 'pending' THEN now() END FROM accounts",
        (transfer_id, state, state, state),
    )
    return transfer_id


@pytest.mark.parametrize(
    "change",
    [
        POSTED,
        "state = 'posted', posted_amount = 1, resolved_at = now()",
        "state = 'voided', resolved_at = now()",
        "state = 'expired', resolved_at = now()",
    ],
)
def test_a_pending_transfer_is_resolved(owner: Connection, change: str) -> None:
    changed = owner.execute(f"UPDATE transfers SET {change} WHERE id = %s".encode(), (transfer(owner, "pending"),))
    assert changed.rowcount == 1


@pytest.mark.parametrize(
    "change",
    [
        "note = 'x'",
        "amount = 11",
        "expires_at = now() + interval '1 day'",
        f"{POSTED}, amount = 4",
        f"{POSTED}, debit_account_id = credit_account_id, credit_account_id = debit_account_id",
        f"{POSTED}, note = 'x'",
        f"{POSTED}, kind = 'top_up'",
        f"{POSTED}, created_at = now()",
        f"{POSTED}, expires_at = now() + interval '1 day'",
        f"{POSTED}, id = gen_random_uuid()",
    ],
)
def test_resolving_a_pending_transfer_changes_nothing_else(owner: Connection, change: str) -> None:
    with pytest.raises(errors.RestrictViolation, match="UPDATE on transfers is refused"):
        owner.execute(f"UPDATE transfers SET {change} WHERE id = %s".encode(), (transfer(owner, "pending"),))


@pytest.mark.parametrize("state", ["posted", "voided", "expired"])
@pytest.mark.parametrize(
    "change", [POSTED, "state = 'voided', posted_amount = NULL", "note = 'x'", "resolved_at = now()"]
)
def test_a_resolved_transfer_cannot_be_resolved_again(owner: Connection, state: str, change: str) -> None:
    with pytest.raises(errors.RestrictViolation, match="UPDATE on transfers is refused"):
        owner.execute(f"UPDATE transfers SET {change} WHERE id = %s".encode(), (transfer(owner, state),))


def test_the_balance_of_a_closed_account_cannot_change(owner: Connection) -> None:
    user = owner.execute(
        "INSERT INTO users (email, full_name, hashed_password) VALUES ('a@b.example', 'A', '!') RETURNING id"
    ).fetchone()
    owner.execute("INSERT INTO accounts (user_id, posted, closed_at) VALUES (%s, 5, now())", user)
    for change in ("posted = 6", "held = 1", "version = version + 1", "posted = 6, closed_at = NULL"):
        with pytest.raises(errors.RestrictViolation, match="UPDATE on accounts is refused"):
            owner.execute(f"UPDATE accounts SET {change} WHERE user_id = %s".encode(), user)
    assert owner.execute("UPDATE accounts SET closed_at = NULL WHERE user_id = %s", user).rowcount == 1
    assert owner.execute("UPDATE accounts SET posted = 6 WHERE user_id = %s", user).rowcount == 1
