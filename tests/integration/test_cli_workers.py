"""`waybill workers`: the list, and the health check with its exit code."""

import json

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings
from tests.roles import superuser_of

pytestmark = pytest.mark.usefixtures("_settings_of_commands")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["workers", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_check_fails_without_workers_or_with_a_silent_one(settings: Settings) -> None:
    assert "no worker" in run("check", code=1).stderr
    refused = json.loads(run("check", "--json", code=1).stdout)
    assert (refused["healthy"], refused["complaints"][0]) == (False, "no worker")
    with psycopg.connect(superuser_of(settings), autocommit=True) as database:
        database.execute(
            "INSERT INTO workers VALUES"
            " (gen_random_uuid(), 'here', 1, now(), now(), now(), '{\"time_limit\": 30, \"types\": []}')"
        )
        assert run("check").output == ""
        assert json.loads(run("check", "--json").stdout) == {"healthy": True, "complaints": []}
        assert "no worker on there" in run("check", "--host", "there", code=1).stderr
        assert "ok" in run("list").stdout
        assert json.loads(run("list", "--host", "there", "--json").stdout) == []
        database.execute("UPDATE workers SET progress_at = now() - interval '61 seconds'")
        assert "no progress for 61 s" in run("check", "--host", "here", code=1).stderr
        assert json.loads(run("list", "--json").stdout)[0]["complaint"].startswith("no progress")
