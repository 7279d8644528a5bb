"""`--dry-run`: commands check and do everything, and leave nothing behind."""

from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings
from tests.roles import superuser_of

NOTHING = "This was a dry run: nothing has been changed.\n"


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def _a_user(_settings_of_commands: None) -> None:
    run("users", "create", "bea@waybill.example", "--role", "customer", "--generate")


def everything(settings: Settings) -> list[Any]:
    """What the commands of these tests change."""
    tables = ("users", "outbox_types", "outbox_actions", "audit_log", "jobs", "log_consumers")
    with psycopg.connect(superuser_of(settings)) as connection:
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["outbox", "pause", "order.placed"], "order.placed is paused.\n"),
        (["outbox", "limit", "order.placed", "3"], "order.placed: at most 3 concurrent batches.\n"),
        (["users", "set-role", "bea@waybill.example", "seller"], "now has the role seller; before: customer.\n"),
        (["users", "erase", "bea@waybill.example"], "is erased.\n"),
    ],
)
def test_it_says_what_would_be_done_and_asks_nothing(settings: Settings, arguments: list[str], said: str) -> None:
    before = everything(settings)
    rehearsed = run(*arguments, "--dry-run")
    assert rehearsed.stdout.endswith(said)
    assert rehearsed.stderr == NOTHING
    assert everything(settings) == before
    done = CliRunner().invoke(app, arguments, input="y\n")
    assert done.stdout.endswith(said)
    assert everything(settings) != before


def test_what_would_be_refused_is_refused(settings: Settings) -> None:
    before = everything(settings)
    refused = run("outbox", "pause", "order.palced", "--dry-run", code=1)
    assert "did you mean 'order.placed'?" in refused.stderr
    assert NOTHING not in refused.stderr
    assert everything(settings) == before
