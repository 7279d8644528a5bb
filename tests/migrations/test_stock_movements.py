"""The stock that existed before its movements were recorded, and what the release before changes meanwhile."""

import psycopg
import pytest
from alembic import command

import migrations.batches
from migrations.config import alembic_config
from tests.migrations.schema import downgrade, revision_of, upgrade
from tests.migrations.watched import Batches, Interrupted, revision_before, upgrade_watched

BATCH = 4
PRODUCTS = 10

MOVED = "SELECT kind, pieces FROM stock_movements ORDER BY id"
UNEXPLAINED = """
    SELECT product_id, on_hand - coalesce(pieces, 0) FROM inventory
    LEFT JOIN (SELECT product_id, sum(pieces) AS pieces FROM stock_movements GROUP BY product_id) AS moved
        USING (product_id)
    WHERE on_hand <> coalesce(pieces, 0)
"""

BEFORE = revision_before("stock_movements")
BATCHES = "INSERT INTO stock_movements"


@pytest.fixture
def before(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database at the revision before, with products that have 0, 1, 2, ... pieces."""
    monkeypatch.setattr(migrations.batches, "BATCH_SIZE", BATCH)
    upgrade(empty_database_url, BEFORE)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO users (email, full_name, hashed_password) VALUES ('a@example.com', 'A', '!')")
        connection.execute("INSERT INTO categories (name) VALUES ('shelf')")
        connection.execute(
            "INSERT INTO products (seller_id, category_id, sku, name, price)"
            " SELECT users.id, categories.id, 'sku' || n, 'thing', 1 FROM users, categories,"
            " generate_series(1, %s) AS n",
            [PRODUCTS],
        )
        connection.execute(
            "INSERT INTO inventory (product_id, on_hand) SELECT id, row_number() OVER (ORDER BY id) - 1 FROM products"
        )
    return empty_database_url


def kinds(url: str) -> list[tuple[str, int]]:
    """The movements, of all products, after checking that they explain what is on hand."""
    with psycopg.connect(url) as connection:
        assert connection.execute(UNEXPLAINED).fetchall() == []
        return [(str(kind), int(str(pieces))) for kind, pieces in connection.execute(MOVED).fetchall()]


def change(url: str, pieces: int) -> None:
    """The last product's stock changes as the release before changes it."""
    with psycopg.connect(url, application_name="waybill-api") as connection:
        connection.execute(
            "UPDATE inventory SET on_hand = on_hand + %s WHERE product_id = (SELECT max(product_id) FROM inventory)",
            [pieces],
        )


OPENING = [("opening", pieces) for pieces in range(1, PRODUCTS)]
"""The product without stock has no movement."""


def test_products_in_place_get_an_opening_movement_in_batches(before: str) -> None:
    batches = Batches(BATCHES)
    upgrade_watched(before, batches)
    assert kinds(before) == OPENING
    assert len(batches) == 1 + PRODUCTS // BATCH


def test_an_interrupted_run_is_repeated(before: str) -> None:
    with pytest.raises(Interrupted):
        upgrade_watched(before, Batches(BATCHES, kill_at=2))
    assert revision_of(before) == [BEFORE]
    # The first batch is committed, and so are the triggers: this change is of the release before.
    change(before, 5)
    upgrade(before)
    assert kinds(before) == [*OPENING[:3], ("unrecorded", 5), *OPENING[3:]]
    command.check(alembic_config(before))


def test_a_change_of_the_previous_release_is_recorded_by_the_trigger(before: str) -> None:
    upgrade(before)
    change(before, -2)
    assert kinds(before) == [*OPENING, ("unrecorded", -2)]


def test_the_table_can_be_dropped_and_filled_again(before: str) -> None:
    upgrade(before)
    downgrade(before, BEFORE)
    change(before, 3)
    upgrade(before)
    assert kinds(before) == [*OPENING[:-1], ("opening", PRODUCTS - 1 + 3)]
