"""`waybill orders`: what the commands print, and their exit codes."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.database import Database
from services.settings import Settings
from tests.factories import make_order, make_product, make_user
from tests.roles import superuser_of

pytestmark = pytest.mark.usefixtures("_settings_of_commands")


@pytest.fixture
async def placed(database: Database) -> list[str]:
    """The ids of two orders with the same reference, and one without."""
    product = await make_product(database)
    found = []
    for email, reference in (("bea@example.com", "INV-1"), ("ben@example.com", "INV-1"), ("bo@example.com", None)):
        buyer = await make_user(database, email=email)
        found.append(await make_order(database, buyer=buyer, lines=[(product, 2)], reference=reference))
    return [str(order.id) for order in found]


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(superuser_of(settings), autocommit=True) as opened:
        yield opened


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["orders", *arguments])
    assert result.exit_code == code, result.output
    return result


def read(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_an_order_is_shown_by_its_id(placed: list[str], connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "INSERT INTO order_transitions (order_id, to_status, actor) VALUES (%s, 'pending', 'user:1')", [placed[2]]
    )
    shown = run("show", placed[2]).output
    assert f"Order {placed[2]} is pending: {Decimal('20.00')} credits, 0.00 refunded." in shown
    assert "placed as pending" in shown
    assert "Not found in the log: order.placed." in shown
    found = read("show", placed[2])
    assert [one["what"] for one in found["entries"]] == ["placed as pending"]


def test_an_order_is_shown_by_its_reference_unless_several_have_it(
    placed: list[str], connection: psycopg.Connection[Any]
) -> None:
    refused = run("show", "INV-1", code=1).output
    assert all(order_id in refused for order_id in placed[:2])
    connection.execute("UPDATE orders SET reference = 'INV-2' WHERE id = %s", [placed[1]])
    assert read("show", "INV-1")["order"]["id"] == placed[0]
    assert "no order has the id or the reference 'INV-3'" in run("show", "INV-3", code=1).output


def test_what_a_customer_wrote_does_not_control_the_terminal(
    placed: list[str], connection: psycopg.Connection[Any]
) -> None:
    connection.execute("UPDATE orders SET reference = %s WHERE id = %s", ["a\x1b[2J\x9b2Jb", placed[2]])
    for shown in (run("find").output, run("show", placed[2]).output):
        assert "a\\u001b[2J\\u009b2Jb" in shown
    assert read("show", placed[2])["order"]["reference"] == "a\x1b[2J\x9b2Jb"


def test_orders_are_found_and_shown_as_a_table_or_as_json(placed: list[str]) -> None:
    assert [one["id"] for one in read("find")["data"]] == placed[::-1]
    assert [one["id"] for one in read("find", "--email", "ben@example.com")["data"]] == [placed[1]]
    assert [one["id"] for one in read("find", "--reference", "INV-1")["data"]] == [placed[1], placed[0]]
    assert [one["id"] for one in read("find", "--status", "pending", "--until", "2020-01-01")["data"]] == []
    assert "There may be more." in run("find", "--limit", "1").output
    assert "reference: " in run("find", "--reference", "", code=1).output
