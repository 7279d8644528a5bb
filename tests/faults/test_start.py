"""Processes and commands on a database that they cannot reach, or whose tables are not those of this release."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from alembic import command
from sqlalchemy import make_url

from migrations.config import alembic_config
from migrations.revisions import revisions
from services.settings import Settings
from tests.faults.edge import changed
from tests.processes import ROOT, environment_of, running_api, running_worker, wait_until
from tests.roles import superuser_of

API = ["-m", "services.cli", "api", "--port", "0"]
WORKER = ["-m", "worker"]
COMMANDS = [
    ["-m", "services.cli", "outbox", "status"],
    ["-m", "services.cli", "jobs", "list"],
    ["-m", "services.cli", "ledger", "audit"],
    ["-m", "services.cli", "users", "create", "boss@waybill.example", "--role", "admin", "--generate"],
    ["-m", "services.cli", "users", "set-role", "boss@waybill.example", "admin"],
]
MIGRATE = ["-m", "services.cli", "migrate"]
ALEMBIC = ["-m", "alembic", "upgrade", "head"]
PASSWORD = "hidden-password"


def named(arguments: list[str]) -> str:
    return " ".join(arguments[1:])


def with_url(settings: Settings, **parts: Any) -> Settings:
    return changed(
        settings, database_url=make_url(settings.database_url).set(**parts).render_as_string(hide_password=False)
    )


AWAY: dict[str, tuple[Callable[[Settings], Settings], str]] = {
    "a wrong password": (lambda given: with_url(given, password=PASSWORD), "password authentication failed"),
    "an unknown database": (lambda given: with_url(given, database="nowhere"), 'database "nowhere" does not exist'),
    "an unknown host": (
        lambda given: with_url(given, host="no-such-host.invalid", password=PASSWORD),
        "the host name cannot be resolved",
    ),
    "a refused connection": (lambda given: with_url(given, port=1, password=PASSWORD), "Connection refused"),
    "no TLS": (
        lambda given: with_url(given, query={"sslmode": "require"}),
        "it does not offer TLS, which the sslmode in the address requires",
    ),
}


def run(arguments: list[str], settings: Settings) -> tuple[int, str]:
    """The exit code of a process that ends by itself, and what it said."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment_of(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def assert_plain(said: str, *sentences: str) -> None:
    """Assert that a line says it, and that there is neither a traceback nor SQL."""
    assert "Traceback" not in said, said
    assert "SELECT" not in said, said
    assert "sqlalche.me" not in said, said
    lines = said.splitlines()
    # The API also logs that it starts and stops.
    assert len(lines) <= 8, said
    assert [line for line in lines if all(sentence in line for sentence in sentences)], said


# All commands connect in the same way.
CASES = [(arguments, away) for arguments in (API, WORKER, MIGRATE) for away in AWAY]
CASES += [(arguments, "a wrong password") for arguments in (*COMMANDS, ALEMBIC)]


@pytest.mark.parametrize(("arguments", "away"), CASES, ids=[f"{named(one)}: {away}" for one, away in CASES])
def test_a_database_that_cannot_be_reached_is_reported_in_one_sentence(
    settings: Settings, arguments: list[str], away: str
) -> None:
    change, reason = AWAY[away]
    given = change(settings)
    code, said = run(arguments, given)
    assert code != 0
    assert_plain(said, "cannot connect to", reason)
    password = make_url(given.database_url).password
    assert password
    assert password not in said


@pytest.mark.parametrize("arguments", [WORKER, *COMMANDS], ids=named)
def test_a_database_without_tables_is_refused_in_one_sentence(
    settings: Settings, empty_database_url: str, arguments: list[str]
) -> None:
    code, said = run(arguments, changed(settings, database_url=empty_database_url))
    assert code in (1, 3)
    assert_plain(said, "the schema public has no tables: run `waybill migrate` first")


@pytest.mark.parametrize("arguments", [WORKER, *COMMANDS], ids=named)
def test_a_database_of_an_older_release_is_refused_in_one_sentence(settings: Settings, arguments: list[str]) -> None:
    *_, before, head = revisions()
    command.downgrade(alembic_config(superuser_of(settings)), "-1")
    code, said = run(arguments, settings)
    assert code in (1, 3)
    assert_plain(said, f"the database is at revision {before}, but this release needs {head}: run `waybill migrate`")


@pytest.mark.parametrize("arguments", [API, WORKER, *COMMANDS], ids=named)
def test_a_schema_that_does_not_exist_is_refused_in_one_sentence(settings: Settings, arguments: list[str]) -> None:
    # The tables of `public` must not be used in its place.
    code, said = run(arguments, changed(settings, database_schema="misspelt"))
    assert code in (1, 3)
    assert_plain(said, "the database has no schema misspelt", "WAYBILL_DATABASE_SCHEMA", "`waybill migrate`")


def test_the_api_is_not_ready_until_the_database_is_migrated(
    settings: Settings, empty_database_url: str, tmp_path: Path
) -> None:
    configuration = alembic_config(empty_database_url)
    with running_api(changed(settings, database_url=empty_database_url), tmp_path / "api.log") as (api, url):

        def says(status: int, tables: str) -> bool:
            assert api.lives, api.said()
            try:
                reply = httpx2.get(f"{url}/readyz", trust_env=False, timeout=10)
            except httpx2.TransportError:
                return False
            return reply.status_code == status and reply.json()["tables"] == tables

        wait_until(lambda: says(503, "missing"), "the API to say that there are no tables")
        command.upgrade(configuration, "head")
        wait_until(lambda: says(200, "ok"), "the API to become ready")
        command.downgrade(configuration, "-1")
        wait_until(lambda: says(503, "behind"), "the API to say that the tables are those of an older release")
        command.upgrade(configuration, "head")
        wait_until(lambda: says(200, "ok"), "the API to become ready again")
    assert api.said().count("run `waybill migrate` first") == 2, "each complaint is logged once"


def test_a_database_that_a_newer_release_has_migrated_is_used(settings: Settings, tmp_path: Path) -> None:
    with psycopg.connect(superuser_of(settings)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with (
        running_worker(settings, tmp_path / "worker.log") as worker,
        running_api(settings, tmp_path / "api.log") as (_, url),
    ):
        wait_until(lambda: worker.said().count("9999") > 0, "the worker to say that the database is newer")

        def is_ready() -> bool:
            try:
                return httpx2.get(f"{url}/readyz", trust_env=False, timeout=10).status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(is_ready, "the API to become ready")
        assert run(COMMANDS[1], settings)[0] == 0
        assert worker.lives
        assert worker.terminate(15) == 0


def test_a_running_worker_reports_that_its_database_is_at_an_older_revision(settings: Settings, tmp_path: Path) -> None:
    check = ["-m", "services.cli", "workers", "check"]
    with running_worker(settings, tmp_path / "worker.log") as worker:
        wait_until(lambda: run(check, settings)[0] == 0, "the worker to be healthy")
        with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0001'")
            report = "SELECT count(*) FROM workers WHERE report ->> 'tables_complaint' LIKE '%at revision 0001%'"
            wait_until(lambda: connection.execute(report).fetchone() == (1,), "the worker to report it")
        assert "at revision 0001" in worker.said()
