"""The sellers of orders that were placed before the table existed, and by the release that does not know it."""

from uuid import UUID

import psycopg
import pytest
from alembic import command

import migrations.batches
from migrations.config import alembic_config
from services.fields import new_id
from tests.migrations.schema import downgrade, revision_of, upgrade
from tests.migrations.watched import Batches, Interrupted, revision_before, upgrade_watched

BATCH = 4
ORDERS = 10
SOLD = "SELECT seller_id, order_id FROM order_sellers"
EXPECTED = "SELECT DISTINCT seller_id, order_id FROM order_items JOIN products ON products.id = product_id"

BEFORE = revision_before("lists")
BATCHES = "INSERT INTO order_sellers"


def place(connection: "psycopg.Connection[tuple[object, ...]]", lines: int) -> UUID:
    """An order as the previous release places it: of as many products, each of another seller."""
    order_id = new_id()
    connection.execute(
        "INSERT INTO orders (id, buyer_id, status, total, item_count) SELECT %s, min(id), 'pending', 1, %s FROM users",
        [order_id, lines],
    )
    connection.execute(
        "INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)"
        " SELECT %s, row_number() OVER (ORDER BY id), id, 1, 1 FROM products ORDER BY id LIMIT %s",
        [order_id, lines],
    )
    return order_id


@pytest.fixture
def before(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database with orders, at the revision before."""
    monkeypatch.setattr(migrations.batches, "BATCH_SIZE", BATCH)
    upgrade(empty_database_url, BEFORE)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(
            "INSERT INTO users (email, full_name, hashed_password)"
            " SELECT n || '@example.com', 'A', '!' FROM generate_series(1, 4) AS n"
        )
        connection.execute("INSERT INTO categories (name) VALUES ('shelf')")
        # The first seller has two of the products.
        connection.execute(
            "INSERT INTO products (seller_id, category_id, sku, name, price)"
            " SELECT users.id + n % 3, categories.id, 'sku' || n, 'thing', 1 FROM categories,"
            " (SELECT min(id) AS id FROM users) AS users, generate_series(0, 3) AS n"
        )
        for number in range(ORDERS):
            place(connection, 1 + number % 4)
    return empty_database_url


def assert_complete(url: str, sold: int) -> None:
    with psycopg.connect(url) as connection:
        found, expected = (set(connection.execute(statement).fetchall()) for statement in (SOLD, EXPECTED))
    assert found == expected
    assert len(found) == sold


# Of orders with one to four products of three sellers: 1, 2, 3, 3, 1, 2, 3, 3, 1, 2.
FILLED = 21


def test_orders_in_place_get_their_sellers_in_batches(before: str) -> None:
    batches = Batches(BATCHES)
    upgrade_watched(before, batches)
    assert_complete(before, FILLED)
    assert len(batches) == 1 + ORDERS // BATCH


def test_an_interrupted_run_is_repeated(before: str) -> None:
    with pytest.raises(Interrupted):
        upgrade_watched(before, Batches(BATCHES, kill_at=2))
    assert revision_of(before) == [BEFORE]
    with psycopg.connect(before) as connection:
        # The first batch is committed, and so is the trigger: this order is of the release before.
        assert 0 < len(connection.execute(SOLD).fetchall()) < FILLED
        place(connection, 3)
    upgrade(before)
    assert_complete(before, FILLED + 3)
    command.check(alembic_config(before))


def test_an_order_of_the_previous_release_gets_its_sellers_from_the_trigger(before: str) -> None:
    upgrade(before)
    with psycopg.connect(before) as connection:
        placed = place(connection, 4)
        found = connection.execute("SELECT count(*) FROM order_sellers WHERE order_id = %s", [placed]).fetchone()
    assert found == (3,)
    assert_complete(before, FILLED + 3)


def test_the_table_can_be_dropped_and_filled_again(before: str) -> None:
    upgrade(before)
    downgrade(before, BEFORE)
    with psycopg.connect(before) as connection:
        place(connection, 2)
    upgrade(before)
    assert_complete(before, FILLED + 2)
