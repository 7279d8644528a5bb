"""`waybill users list` and `waybill users show`."""

import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings
from tests.roles import superuser_of


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["users", *arguments])
    assert result.exit_code == code, result.output
    return result


def read(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(autouse=True)
def _some_users(_settings_of_commands: None) -> None:
    for email, role in (("bea", "customer"), ("sam", "seller"), ("ada", "admin")):
        run("create", f"{email}@waybill.example", "--role", role, "--generate", "--name", email.title())


def test_users_are_listed_by_role_and_by_part_of_their_address() -> None:
    assert [user["email"] for user in read("list")["data"]] == [
        f"{name}@waybill.example" for name in ("bea", "sam", "ada")
    ]
    assert [user["email"] for user in read("list", "--role", "admin")["data"]] == ["ada@waybill.example"]
    assert [user["full_name"] for user in read("list", "--email", "SAM")["data"]] == ["Sam"]
    assert "sam@waybill.example" in run("list", "--role", "seller").stdout
    assert "password" not in json.dumps(read("list"))


def test_a_list_continues_after_its_cursor() -> None:
    first = read("list", "--limit", "2")
    (last,) = read("list", "--limit", "2", "--cursor", first["next_cursor"])["data"]
    assert last["email"] == "ada@waybill.example"
    assert f"More with --cursor {first['next_cursor']}" in run("list", "--limit", "2").stdout
    assert "cursor" in run("list", "--cursor", "nonsense", code=1).stderr


def test_a_user_is_shown_by_id_or_address_even_if_deleted(settings: Settings) -> None:
    shown = read("show", "Bea@waybill.example")
    assert (shown["role"], shown["posted"], shown["held"], shown["totp_since"]) == ("customer", "0.00", "0.00", None)
    assert read("show", str(shown["id"])) == shown
    assert "bea@waybill.example" in run("show", str(shown["id"])).stdout
    assert "hashed" not in run("show", str(shown["id"])).stdout
    with psycopg.connect(superuser_of(settings)) as connection:
        connection.execute("UPDATE users SET deleted_at = now() WHERE id = %s", [shown["id"]])
    assert read("show", str(shown["id"]))["deleted_at"] is not None
    assert "user 999999" in run("show", "999999", code=1).stderr
