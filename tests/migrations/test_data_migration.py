"""Migrations on a database that is in use: filled in batches, interrupted, resumed, and undone with rows in place."""

import asyncio
from math import ceil
from uuid import UUID

import psycopg
import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

import migrations.batches
from migrations.config import alembic_config
from services.database import Database
from services.fields import new_id
from services.models import metadata
from tests.factories import make_operator, make_order, make_product, make_user
from tests.migrations.schema import downgrade, revision_of, upgrade
from tests.migrations.watched import Batches, Interrupted, interrupt_at, upgrade_watched

ORDERS = 20
BATCH = 6


@pytest.fixture
def orders(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[UUID, int]:
    """A database before the column, with orders of one to three lines; returns the number of lines of each."""
    monkeypatch.setattr(migrations.batches, "BATCH_SIZE", BATCH)
    upgrade(empty_database_url, "0001")
    lines = {new_id(): 1 + number % 3 for number in range(ORDERS)}
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO users (email, full_name, hashed_password) VALUES ('a@example.com', 'A', '!')")
        connection.execute("INSERT INTO categories (name) VALUES ('shelf')")
        connection.execute(
            "INSERT INTO products (seller_id, category_id, sku, name, price)"
            " SELECT users.id, categories.id, 'sku', 'thing', 1 FROM users, categories"
        )
        for order_id, count in lines.items():
            insert_order(connection, order_id, count)
    return lines


def insert_order(connection: "psycopg.Connection[tuple[object, ...]]", order_id: UUID, lines: int) -> None:
    """An order as the services wrote it before this migration."""
    connection.execute(
        "INSERT INTO orders (id, buyer_id, status, total) SELECT %s, id, 'pending', 1 FROM users", [order_id]
    )
    connection.execute(
        "INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)"
        " SELECT %s, line, products.id, 1, 1 FROM products, generate_series(1, %s) AS line",
        [order_id, lines],
    )


def counts(url: str) -> dict[UUID, int | None]:
    """Each order's item_count, as another session sees it. Fails if a migration blocks other sessions."""
    with psycopg.connect(url, options="-c lock_timeout=2s") as connection:
        return dict(connection.execute("SELECT id, item_count FROM orders").fetchall())


def upgrade_counting_batches(url: str) -> int:
    batches = Batches("UPDATE orders")
    upgrade_watched(url, batches, "0002")
    return len(batches)


def test_rows_in_place_are_filled_in_batches(empty_database_url: str, orders: dict[UUID, int]) -> None:
    batches = upgrade_counting_batches(empty_database_url)
    assert counts(empty_database_url) == orders
    # And one that finds nothing, for orders written meanwhile.
    assert batches == ceil(ORDERS / BATCH) + 1


def test_each_batch_is_committed_before_the_next(empty_database_url: str, orders: dict[UUID, int]) -> None:
    filled: list[int] = []

    def look_from_outside(statement: str) -> None:
        if statement.startswith("UPDATE orders"):
            filled.append(sum(count is not None for count in counts(empty_database_url).values()))

    upgrade_watched(empty_database_url, look_from_outside, "0002")
    assert filled == [0, BATCH, 2 * BATCH, 3 * BATCH, ORDERS]


def test_an_interrupted_run_is_resumed_where_work_is_left(empty_database_url: str, orders: dict[UUID, int]) -> None:
    with pytest.raises(Interrupted):
        upgrade_watched(empty_database_url, Batches("UPDATE orders", kill_at=3), "0002")
    assert revision_of(empty_database_url) == ["0001"]
    in_between = counts(empty_database_url)
    assert sorted(in_between) == sorted(orders)
    assert [in_between[order_id] for order_id in sorted(orders)[: 2 * BATCH]] == [
        orders[order_id] for order_id in sorted(orders)[: 2 * BATCH]
    ]
    assert all(in_between[order_id] is None for order_id in sorted(orders)[2 * BATCH :])

    assert upgrade_counting_batches(empty_database_url) == ceil((ORDERS - 2 * BATCH) / BATCH) + 1
    assert counts(empty_database_url) == orders
    assert revision_of(empty_database_url) == ["0002"]
    upgrade(empty_database_url)
    command.check(alembic_config(empty_database_url))


@pytest.mark.parametrize("interrupted_at", ["ADD CONSTRAINT ck_orders_item_count ", "VALIDATE", "SET NOT NULL"])
def test_a_run_interrupted_after_the_batches_is_resumed_too(
    empty_database_url: str, orders: dict[UUID, int], interrupted_at: str
) -> None:
    with pytest.raises(Interrupted):
        upgrade_watched(empty_database_url, interrupt_at(interrupted_at), "0002")
    assert revision_of(empty_database_url) == ["0001"]
    upgrade(empty_database_url, "0002")
    assert counts(empty_database_url) == orders
    upgrade(empty_database_url)
    command.check(alembic_config(empty_database_url))


def test_an_order_that_the_old_version_writes_meanwhile_is_filled_too(
    empty_database_url: str, orders: dict[UUID, int]
) -> None:
    late = new_id()

    def write_one_more(statement: str) -> None:
        # The first statement after the batches; the later ones hold a lock.
        if statement.endswith("DROP CONSTRAINT IF EXISTS ck_orders_item_count"):
            with psycopg.connect(empty_database_url) as connection:
                insert_order(connection, late, 2)

    upgrade_watched(empty_database_url, write_one_more, "0002")
    assert counts(empty_database_url) == {**orders, late: 2}


def test_an_order_without_lines_stops_the_migration_and_is_named_by_the_check(
    empty_database_url: str, orders: dict[UUID, int]
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        insert_order(connection, new_id(), 0)
    with pytest.raises(IntegrityError, match="ck_orders_item_count"):
        upgrade(empty_database_url, "0002")
    assert revision_of(empty_database_url) == ["0001"]


def test_the_database_insists_on_the_count_afterwards(empty_database_url: str, orders: dict[UUID, int]) -> None:
    upgrade(empty_database_url, "0002")
    with psycopg.connect(empty_database_url) as connection, pytest.raises(psycopg.errors.NotNullViolation):
        insert_order(connection, new_id(), 1)


def test_an_empty_table_is_filled_too(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0002")
    assert counts(empty_database_url) == {}


async def test_downgrades_run_with_rows_in_every_table(database: Database, database_url: str) -> None:
    buyer, operator = await make_user(database, credits="100.00"), await make_operator(database)
    order = await make_order(database, buyer=buyer, lines=[(await make_product(database), 2)])
    async with database.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO order_transitions (order_id, to_status) VALUES (:id, 'pending')"), {"id": order.id}
        )
        await connection.execute(
            text("INSERT INTO events (id, type, version, aggregate, payload) VALUES (:id, 'a', 1, 'b', '{}')"),
            {"id": new_id()},
        )
        # Ready, and waiting in each way there is.
        await connection.execute(
            text(
                "INSERT INTO outbox (event_id, aggregate, type, available_at, waits, failures)"
                " SELECT gen_random_uuid(), 'b', 'a', row.available_at, row.waits, '[]' FROM (VALUES (NULL, NULL),"
                " (now(), 'retry'), (now(), 'asked'), ('infinity', 'behind'), (now(), 'unknown'))"
                " AS row(available_at, waits)"
            )
        )
        await connection.execute(text("INSERT INTO outbox_types (type, paused, max_batches) VALUES ('a', true, 2)"))
        await connection.execute(
            text("INSERT INTO outbox_actions (actor, action, type) VALUES ('somebody', 'paused', 'a')")
        )
        await connection.execute(
            text(
                "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)"
                " VALUES (:id, 'here', 1, now(), now(), now(), '{}')"
            ),
            {"id": new_id()},
        )
        await connection.execute(
            text(
                "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
                " VALUES (1, :id, 'a', 'b', 1, '')"
            ),
            {"id": new_id()},
        )
        await connection.execute(
            text(
                "INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body)"
                " VALUES (:id, 'POST', '/', 'k', '', 201, '{}', '')"
            ),
            {"id": buyer.id},
        )
        await connection.execute(
            text(
                "INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample)"
                " VALUES (now(), 1, 1, 0, '[]')"
            )
        )
        await connection.execute(
            text("INSERT INTO canaries (id, host, pid, number, written_at) VALUES (:id, 'here', 1, 1, now())"),
            {"id": new_id()},
        )
        await connection.execute(
            text("INSERT INTO refunds (id, order_id, amount, requested_by) VALUES (:id, :order, 5, :by)"),
            {"id": order.id, "order": order.id, "by": operator.id},
        )
        await connection.execute(
            text("INSERT INTO refund_lines (refund_id, line, order_id, quantity) VALUES (:id, 1, :id, 1)"),
            {"id": order.id},
        )
        await connection.execute(
            text(
                "INSERT INTO adjustments (id, account_id, amount, reason, state, needs_approval, requested_by)"
                " SELECT :id, id, 1, 'because', 'pending', true, :by FROM accounts WHERE user_id = :user"
            ),
            {"id": new_id(), "user": buyer.id, "by": operator.id},
        )
        await connection.execute(
            text(
                "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount,"
                " expires_at, resolved_at, reverses)"
                " SELECT gen_random_uuid(), credit_account_id, debit_account_id, 9, row.kind, row.state, row.posted,"
                " now(), now(), CASE row.kind WHEN 'reversal' THEN id END FROM transfers, (VALUES"
                " ('transfer', 'expired', NULL), ('transfer', 'posted', 4), ('reversal', 'posted', 9),"
                " ('adjustment', 'posted', 9)) AS row(kind, state, posted)"
            )
        )
        await connection.execute(text("INSERT INTO log_consumers (name, seen) VALUES ('feed', '1:1:')"))
        await connection.execute(text("INSERT INTO log_sinks (name) VALUES ('feed')"))
        await connection.execute(
            text("INSERT INTO jobs (name, schedule, due_at) VALUES ('expire', 'each minute', now())")
        )
        await connection.execute(
            text(
                "INSERT INTO sweep_failures (sweep, subject, attempts, error, first_at, last_at, next_at)"
                " VALUES ('holds', 'x', 1, 'no', now(), now(), now())"
            )
        )
        await connection.execute(
            text("INSERT INTO order_days (day, type, orders, amount) VALUES ('2026-11-27', 'order.placed', 1, 9)")
        )
        await connection.execute(
            text(
                "INSERT INTO outbox (event_id, aggregate, type, version, available_at, waits)"
                " VALUES (:id, 'a', 'b', 1, now(), 'begun')"
            ),
            {"id": new_id()},
        )
        await connection.execute(
            text("INSERT INTO failed_attempts (subject, failures, locked_until) VALUES (sha256('x'), 1, now())")
        )
        await connection.execute(
            text("INSERT INTO mails (kind, user_id) VALUES ('password_reset', :id)"), {"id": buyer.id}
        )
        await connection.execute(
            text(
                "INSERT INTO one_time_tokens (hash, purpose, user_id, email, expires_at)"
                " VALUES (sha256('x'), 'password_reset', :id, 'a@example.com', now())"
            ),
            {"id": buyer.id},
        )
        await connection.execute(
            text("INSERT INTO refresh_tokens (hash, session_id) SELECT sha256('x'), id FROM sessions LIMIT 1")
        )
        await connection.execute(
            text(
                "INSERT INTO api_keys (id, user_id, name, hash, hint, scopes, expires_at)"
                " VALUES (:id, :user, 'a program', sha256('x'), 'wbk_', '{orders:read}', now() + interval '1 day')"
            ),
            {"id": new_id(), "user": buyer.id},
        )
        await connection.execute(text("INSERT INTO outbox_errors (fingerprint, error) VALUES ('abc', 'no')"))
        await connection.execute(
            text(
                "INSERT INTO bulk_actions"
                " (action, filter, reason, id, actor, state, estimate, precision, last_position)"
                " VALUES ('replay', '{}', 'mended', gen_random_uuid(), 'ops', 'waiting', 1, 'exact', 1)"
            )
        )
        await connection.execute(
            text(
                "INSERT INTO history"
                " (at, worker_id, processed, retried, buried, batches, rolled_back, rung, polled, queued,"
                " queue_seconds)"
                " VALUES (now(), gen_random_uuid(), 1, 0, 0, 1, 0, 1, 0, 1, 0.1)"
            )
        )
        await connection.execute(text("INSERT INTO audit_log (action, object) VALUES ('user.restored', 'user/1')"))
        await connection.execute(
            text(
                "INSERT INTO unapproved_movements"
                " (transfer_id, operator_id, debit_account_id, credit_account_id, amount)"
                " SELECT id, :by, debit_account_id, credit_account_id, 1 FROM transfers LIMIT 1"
            ),
            {"by": buyer.id},
        )
        await connection.execute(
            text(
                "INSERT INTO role_requests (id, user_id, role, state, requested_by, expires_at)"
                " SELECT :id, :user, 'seller', 'pending', max(id), now() + interval '1 day' FROM users"
            ),
            {"id": new_id(), "user": buyer.id},
        )
        await connection.execute(
            text("INSERT INTO totp_secrets (user_id, sealed, key_id) VALUES (:user, 'x', 'x')"), {"user": buyer.id}
        )
        await connection.execute(
            text("INSERT INTO recovery_codes (hash, user_id) VALUES (sha256('x'), :user)"), {"user": buyer.id}
        )
        await connection.execute(
            text(
                "INSERT INTO unverified_emails (email, full_name, hashed_password, expires_at)"
                " VALUES ('c@example.com', 'C', '!', now() + interval '1 day')"
            )
        )
        for table in metadata.tables:
            count = await connection.scalar(text(f"SELECT count(*) FROM {table}"))
            assert count, f"{table} is empty: this test is to know it"
    await database.engine.dispose()

    await asyncio.to_thread(downgrade, database_url, "0001")
    with psycopg.connect(database_url) as rows:
        assert rows.execute("SELECT id, total FROM orders").fetchall() == [(order.id, order.total)]
        told = "SELECT kind, state, amount FROM transfers WHERE kind <> 'top_up' ORDER BY state, amount"
        assert rows.execute(told).fetchall() == [
            ("transfer", "posted", 4),
            ("transfer", "posted", 9),
            ("transfer", "posted", 9),
            ("transfer", "voided", 9),
        ]
    await asyncio.to_thread(upgrade, database_url, "0002")
    assert counts(database_url) == {order.id: 1}
    await asyncio.to_thread(downgrade, database_url, "base")
    await asyncio.to_thread(upgrade, database_url)
