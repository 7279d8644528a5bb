"""`waybill audit-log`, and the chain's head in `waybill ledger audit`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings, get_settings
from tests.roles import superuser_of

PASSWORD = "a good long passphrase"


@pytest.fixture
def database(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", settings.environment.value)
    monkeypatch.setenv("WAYBILL_DATABASE_URL", settings.database_url)
    monkeypatch.setattr("getpass.getuser", lambda: "olga")
    get_settings.cache_clear()
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        yield connection
    get_settings.cache_clear()


def run(*arguments: str, code: int = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=given)
    assert result.exit_code == code, result.output
    return result


def found(*arguments: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(run("audit-log", *arguments, "--json").stdout)
    return shown


def test_a_command_leaves_its_act_with_who_ran_it(database: psycopg.Connection[Any]) -> None:
    run("create-operator", "olga@example.com", given=f"{PASSWORD}\n{PASSWORD}\n")
    database.execute("INSERT INTO outbox_types (type) VALUES ('thing')")
    run("outbox", "pause", "thing", "--reason", "it fails")
    paused, made = found()
    assert (made["actor"], made["action"], made["details"]) == (
        "command:create-operator",
        "user.registered",
        {"role": "operator"},
    )
    assert made["address"].startswith("olga@")
    assert (paused["actor"], paused["action"], paused["object"]) == (
        "command:outbox pause",
        "outbox.type_paused",
        "type/thing",
    )
    assert (paused["reason"], paused["details"]["by"]) == ("it fails", "olga")
    event = database.execute("SELECT actor FROM events WHERE type = 'user.registered'").fetchone()
    assert event == ("command:create-operator",)


def test_one_command_says_who_topped_up_an_account(database: psycopg.Connection[Any]) -> None:
    run("create-operator", "bea@example.com", given=f"{PASSWORD}\n{PASSWORD}\n")
    row = database.execute("SELECT users.id, accounts.id FROM users JOIN accounts ON user_id = users.id").fetchone()
    assert row is not None
    database.execute(
        "INSERT INTO audit_log (at, actor, user_id, action, object, reason) VALUES"
        " ('2026-01-01', 'user:77', 77, 'credits.top_up', %s, 'a gift'),"
        " ('2026-02-01', 'user:77', 77, 'credits.top_up', 'account/999', 'not hers'),"
        " ('2026-03-01', 'user:77', 77, 'account.closed', %s, '')",
        [f"account/{row[1]}", f"account/{row[1]}"],
    )
    (act,) = found("--user", "BEA@example.com", "--action", "credits.top_up")
    assert (act["actor"], act["reason"]) == ("user:77", "a gift")
    assert [one["action"] for one in found("--object", f"account/{row[1]}")] == ["account.closed", "credits.top_up"]
    assert [one["reason"] for one in found("--since", "2026-01-15", "--until", "2026-02-15")] == ["not hers"]
    assert len(found("--actor", "user:77", "--limit", "2")) == 2
    shown = run("audit-log", "--user", "bea@example.com", "--action", "credits.top_up").stdout
    assert "user:77" in shown
    assert "a gift" in shown
    assert "not hers" not in shown
    assert "no user has the e-mail address" in run("audit-log", "--user", "nobody@example.com", code=1).output


def test_an_audit_compares_a_head_that_was_noted(database: psycopg.Connection[Any]) -> None:
    assert "everything agrees" in run("ledger", "audit").output
    gone = f"3:{'ab' * 32}"
    output = run("ledger", "audit", "--head", gone, code=1).output
    assert "audit_log_cut" in output
    assert "abab" in output
    assert "is not a head of the audit log" in run("ledger", "audit", "--head", "3", code=2).output
