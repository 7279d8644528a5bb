"""What is written cannot be changed: the database refuses it, even for the owner of the tables."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from services.database import Database
from services.fields import id_at, now
from services.outbox.retention.repository import add_partitions

Connection = psycopg.Connection[tuple[object, ...]]

TABLES = {
    "entries": "amount = amount",
    "order_transitions": "reason = ''",
    "refunds": "reason = ''",
    "refund_lines": "quantity = 1",
    "stock_movements": "pieces = pieces",
    "unapproved_movements": "amount = amount",
}


KEPT = {
    "audit_log": "UPDATE audit_log SET reason = 'another'",
    "audit_log_head": "UPDATE audit_log_head SET position = position",
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


@pytest.mark.parametrize("table", KEPT)
def test_the_audit_log_refuses_every_change_but_sealing(owner: Connection, table: str) -> None:
    owner.execute("INSERT INTO audit_log (action, object) VALUES ('user.deleted', 'user/1')")
    for statement in (KEPT[table], f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(errors.RestrictViolation, match=f"on {table} is refused: what is written stays"):
            owner.execute(statement.encode())


def test_an_act_is_sealed_once_and_not_changed_with_that(owner: Connection) -> None:
    owner.execute("INSERT INTO audit_log (action, object) VALUES ('user.deleted', 'user/1')")
    seal = "UPDATE audit_log SET position = {}, hash = decode('00', 'hex')"
    with pytest.raises(errors.RestrictViolation, match="what is written stays"):
        owner.execute((seal.format(1) + ", object = 'user/2'").encode())
    owner.execute(seal.format(1).encode())
    with pytest.raises(errors.RestrictViolation, match="what is written stays"):
        owner.execute(seal.format(2).encode())


def test_transfers_cannot_be_deleted(owner: Connection) -> None:
    for statement in ("DELETE FROM transfers", "TRUNCATE transfers CASCADE"):
        with pytest.raises(errors.RestrictViolation, match="is refused: what is written stays"):
            owner.execute(statement.encode())


POSTED = "state = 'posted', posted_amount = amount, resolved_at = now()"


def transfer(owner: Connection, state: str, kind: str = "transfer") -> object:
    """A transfer in the given state between two existing accounts."""
    transfer_id = uuid4()
    owner.execute("INSERT INTO accounts (system_name) VALUES ('other') ON CONFLICT DO NOTHING")
    owner.execute(
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount,"
        " expires_at, resolved_at) SELECT %s, min(id), max(id), 10, %s, %s::text,"
        " CASE %s::text WHEN 'posted' THEN 4 END, now(), CASE WHEN %s::text <> 'pending' THEN now() END FROM accounts",
        (transfer_id, kind, state, state, state),
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


def write_event(owner: Connection, at: datetime) -> UUID:
    event_id = id_at(at)
    owner.execute(
        "INSERT INTO events (id, type, version, aggregate, payload) VALUES (%s, 'a.b', 1, 'a/1', '{}')", [event_id]
    )
    return event_id


OLD = datetime(2021, 3, 15, tzinfo=UTC)
"""A month without a partition: its events are in the default one."""


CHANGES_OF_EVENTS = (
    "id = gen_random_uuid()",
    "type = 'b'",
    "version = 2",
    "aggregate = 'b/1'",
    "payload = '1'",
    "occurred_at = now()",
    "request_id = 'x'",
    "traceparent = 'x'",
    "position = -1",
)


def partitions(owner: Connection) -> list[str]:
    found = owner.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass")
    return [str(name) for (name,) in found.fetchall()]


async def test_events_stay_in_the_log_and_in_each_of_its_partitions(owner: Connection, database: Database) -> None:
    for at in (OLD, now(), now() + timedelta(days=40)):
        write_event(owner, at)
    async with database.engine.begin() as connection:
        await add_partitions(connection, [(2020, 1)])
    write_event(owner, datetime(2020, 1, 15, tzinfo=UTC))
    assert {"events_default", "events_2020_01"} < set(partitions(owner))
    holding = 0
    for table in ("events", *partitions(owner)):
        (held,) = owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
        refused = [f"TRUNCATE {table}"]
        if held:
            holding += 1
            refused += [f"UPDATE {table} SET {change}" for change in CHANGES_OF_EVENTS]
            refused.append(f"DELETE FROM {table}")
        for statement in refused:
            with pytest.raises(errors.RestrictViolation, match="is refused: what is written stays"):
                owner.execute(statement.encode())
    assert holding == 5


def test_a_rebase_gives_events_other_transaction_ids(owner: Connection) -> None:
    write_event(owner, now())
    assert owner.execute("UPDATE events SET transaction_id = '5'").rowcount == 1


def test_an_event_leaves_the_default_partition_only_for_the_month_that_is_being_made(owner: Connection) -> None:
    event_id = write_event(owner, OLD)
    owner.execute("CREATE TABLE events_2021_03 (LIKE events INCLUDING ALL)")
    with pytest.raises(errors.RestrictViolation, match="DELETE on events_default is refused"):
        # Made by another transaction.
        owner.execute("DELETE FROM events_default")
    owner.execute("DROP TABLE events_2021_03")
    with owner.transaction():
        owner.execute("CREATE TABLE events_2021_03 (LIKE events INCLUDING ALL)")
        moved = "WITH moved AS (DELETE FROM events_default RETURNING *) INSERT INTO events_2021_03 SELECT * FROM moved"
        assert owner.execute(moved).rowcount == 1
        bounds = (str(id_at(datetime(2021, 3, 1, tzinfo=UTC))), str(id_at(datetime(2021, 4, 1, tzinfo=UTC))))
        attach = (
            f"ALTER TABLE events ATTACH PARTITION events_2021_03 FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')"
        )
        owner.execute(attach.encode())
    with pytest.raises(errors.RestrictViolation, match="DELETE on events_2021_03 is refused"):
        owner.execute("DELETE FROM events WHERE id = %s", [event_id])
    # A month leaves as a whole, and can then be changed.
    owner.execute("ALTER TABLE events DETACH PARTITION events_2021_03")
    assert owner.execute("DELETE FROM events_2021_03").rowcount == 1


def adjustment(owner: Connection, state: str) -> UUID:
    """An adjustment in the given state, which one operator requested and another has to approve."""
    adjustment_id = uuid4()
    owner.execute(
        "INSERT INTO users (email, full_name, hashed_password)"
        " VALUES ('a@b.example', 'A', '!'), ('b@b.example', 'B', '!')"
    )
    decided = "now()" if state != "pending" else "NULL"
    owner.execute(
        "INSERT INTO adjustments (id, account_id, amount, reason, state, needs_approval, requested_by, decided_by,"
        " transfer_id, decided_at) SELECT %s, accounts.id, 5, 'r', %s::text, true, min(users.id),"
        f" CASE %s::text WHEN 'pending' THEN NULL ELSE max(users.id) END, %s, {decided}"
        " FROM accounts, users WHERE system_name = 'issuance' GROUP BY accounts.id".encode(),
        (adjustment_id, state, state, transfer(owner, "posted", "adjustment") if state == "applied" else None),
    )
    return adjustment_id


APPLIED = "state = 'applied', decided_by = (SELECT max(id) FROM users), decided_at = now(), transfer_id = {transfer}"
REJECTED = "state = 'rejected', decided_by = (SELECT max(id) FROM users), decided_at = now()"


def change_adjustment(owner: Connection, adjustment_id: UUID, change: str) -> int:
    given = change.format(transfer=f"'{transfer(owner, 'posted', 'adjustment')}'")
    return owner.execute(f"UPDATE adjustments SET {given} WHERE id = %s".encode(), (adjustment_id,)).rowcount


@pytest.mark.parametrize("change", [APPLIED, REJECTED])
def test_a_pending_adjustment_is_decided_once(owner: Connection, change: str) -> None:
    adjustment_id = adjustment(owner, "pending")
    assert change_adjustment(owner, adjustment_id, change) == 1
    for other in (APPLIED, REJECTED, "state = 'pending', decided_by = NULL, decided_at = NULL, transfer_id = NULL"):
        with pytest.raises(errors.RestrictViolation, match="UPDATE on adjustments is refused"):
            change_adjustment(owner, adjustment_id, other)


@pytest.mark.parametrize("state", ["pending", "applied", "rejected"])
@pytest.mark.parametrize(
    "change",
    [
        "amount = 6",
        "reason = 'x'",
        "account_id = (SELECT max(id) FROM accounts)",
        "needs_approval = false",
        "requested_by = requested_by + 1",
        "operation = 'top_up'",
        "reverses = gen_random_uuid()",
        "created_at = now()",
        "decided_at = decided_at + interval '1 s'",
        "id = gen_random_uuid()",
        f"{REJECTED}, amount = 6",
    ],
)
def test_nothing_else_of_an_adjustment_changes(owner: Connection, state: str, change: str) -> None:
    adjustment_id = adjustment(owner, state)
    with pytest.raises(errors.RestrictViolation, match="UPDATE on adjustments is refused"):
        change_adjustment(owner, adjustment_id, change)


@pytest.mark.parametrize("kind", ["transfer", "top_up", "order"])
def test_an_adjustment_is_applied_by_a_transfer_that_does_what_was_asked_for(owner: Connection, kind: str) -> None:
    """Also by a process of the release before, which takes a top-up or a reversal for an adjustment."""
    adjustment_id = adjustment(owner, "pending")
    change = APPLIED.format(transfer=f"'{transfer(owner, 'posted', kind)}'")
    with pytest.raises(errors.CheckViolation, match="is applied by a transfer that does something else"):
        change_adjustment(owner, adjustment_id, change)
    assert change_adjustment(owner, adjustment_id, APPLIED) == 1


def test_adjustments_cannot_be_deleted(owner: Connection) -> None:
    for statement in ("DELETE FROM adjustments", "TRUNCATE adjustments CASCADE"):
        with pytest.raises(errors.RestrictViolation, match="is refused: what is written stays"):
            owner.execute(statement.encode())
