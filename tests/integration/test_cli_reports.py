"""`waybill reports rebuild` and `waybill migrate --database analytics`."""

import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings, get_settings
from tests.migrations.schema import read_schema
from tests.roles import superuser_of

EVENT = """
    INSERT INTO events (id, type, version, aggregate, payload)
    SELECT CAST(lpad(to_hex(1700000000000 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0') AS uuid),
        'order.confirmed', 1, 'order/x', jsonb_build_object('order_id', orders.id)
    FROM orders, generate_series(1, 7) AS n
"""
SHOP = """
    INSERT INTO users (email, full_name, hashed_password) VALUES ('ann@example.com', 'Ann', '!');
    INSERT INTO categories (name) VALUES ('All');
    INSERT INTO products (seller_id, category_id, sku, name, price)
    SELECT users.id, categories.id, 'A', 'A', 2.50 FROM users, categories;
    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT gen_random_uuid(), id, 'confirmed', 5.00, 1 FROM users;
    INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
    SELECT orders.id, 1, products.id, 2, 2.50 FROM orders, products;
    INSERT INTO order_transitions (order_id, to_status) SELECT id, 'pending' FROM orders;
"""


@pytest.fixture(autouse=True)
def _commands(_settings_of_commands: None) -> None:
    """Commands use the test's databases."""


@pytest.fixture
def on(analytics_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Reports are on; the analytics database's address."""
    monkeypatch.setenv("WAYBILL_ANALYTICS_URL", analytics_url)
    get_settings.cache_clear()
    return analytics_url


@pytest.fixture
def traded(settings: Settings) -> Settings:
    """Seven events about an order of two pieces."""
    execute(superuser_of(settings), SHOP, EVENT)
    return settings


def execute(url: str, *statements: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_a_rebuild_counts_the_whole_log_and_shows_its_progress(on: str, traded: Settings) -> None:
    execute(
        on,
        "INSERT INTO report_days VALUES (0, '2020-01-01', 0, 'order.placed', 1, 1, 1), "
        "(0, '2024-01-01', 0, 'order.placed', 1, 1, 1)",
    )
    for _ in range(2):
        said = run("reports", "rebuild", "--yes", "--actor", "ann", "--reason", "wrong sums")
        assert "events: 7 of 7" in said.stderr
        assert "rebuilt from the events since 2023-11-14, the oldest in the log" in said.stdout
        assert "The days from 2020-01-01 to the one before that are kept as they were." in said.stdout
        found = execute(on, "SELECT day::text, orders, pieces, amount FROM report_days WHERE seller_id = 0 ORDER BY 1")
        assert found == [("2020-01-01", 1, 1, 1), ("2023-11-14", 7, 14, 35)]
    listed = json.loads(run("outbox", "consumers", "list", "--json").stdout)
    assert [(one["name"], one["events"], one["state"]) for one in listed] == [("reports", 0, "waiting")]
    audited = execute(traded.database_url, "SELECT action, actor, reason FROM outbox_actions")
    assert audited == [("rebuild", "ann", "wrong sums")] * 2


def test_a_rebuild_is_confirmed_first(on: str, traded: Settings) -> None:
    assert run("reports", "rebuild", code=1).output.startswith("delete the reports of the days that the log still")
    assert execute(traded.database_url, "SELECT FROM log_consumers") == []


def test_a_rebuild_without_events_keeps_everything(on: str, settings: Settings) -> None:
    execute(on, "INSERT INTO report_days VALUES (0, '2020-01-01', 0, 'order.placed', 1, 1, 1)")
    assert "The log holds no events" in run("reports", "rebuild", "--yes").stdout
    assert execute(on, "SELECT orders FROM report_days") == [(1,)]


def test_a_rebuild_of_a_paused_consumer_is_refused_and_changes_nothing(on: str, traded: Settings) -> None:
    run("reports", "rebuild", "--yes")
    execute(traded.database_url, "UPDATE log_consumers SET paused_at = now(), paused_by = 'ann'")
    refused = run("reports", "rebuild", "--yes", code=1)
    assert "run `waybill outbox consumers resume reports`" in refused.output
    assert execute(on, "SELECT count(*) > 0 FROM report_days") == [(True,)]


def test_a_database_that_is_away_is_reported_in_one_line(
    on: str, traded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_ANALYTICS_URL", "postgresql://ann:hidden@127.0.0.1:1/none")
    get_settings.cache_clear()
    for arguments in (["reports", "rebuild", "--yes"], ["migrate", "--database", "analytics"]):
        refused = run(*arguments, code=1)
        assert "Connection refused" in refused.output
        assert "hidden" not in refused.output


def test_without_an_analytics_database_the_commands_say_how_to_turn_reports_on() -> None:
    for arguments in (["reports", "rebuild", "--yes"], ["migrate", "--database", "analytics"]):
        assert "set WAYBILL_ANALYTICS_URL" in run(*arguments, code=1).output


def test_migrate_upgrades_the_analytics_database_and_leaves_the_primary_alone(
    empty_database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_ANALYTICS_URL", empty_database_url)
    get_settings.cache_clear()
    refused = run("reports", "rebuild", "--yes", code=1)
    assert "run `waybill migrate --database analytics`" in refused.output
    before = read_schema(superuser_of(settings))
    said = run("migrate", "--database", "analytics").stdout
    assert said.endswith("The analytics database is at the newest revision.\n")
    assert "report_days" in read_schema(empty_database_url).tables
    assert read_schema(superuser_of(settings)) == before
    assert "analytics" not in run("migrate").stdout


def test_a_consumer_with_a_sink_is_not_reset_by_hand(on: str, traded: Settings) -> None:
    run("reports", "rebuild", "--yes")
    refused = run("outbox", "consumers", "reset", "reports", "--to", "now", "--yes", code=1)
    assert "rebuild what the consumer writes there" in refused.output
