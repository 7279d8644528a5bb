"""The real processes refuse what puts an installation at risk, say all of it, and end with an exit code."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from services.safety import DEVELOPMENT_SECRET
from services.settings import Settings
from tests.processes import ROOT, environment_of, running, wait_until
from tests.roles import superuser_of
from tests.secret import SECRET

API = ["-m", "services.cli", "api", "--port", "0"]
SEVERAL = [*API, "--workers", "2"]
WORKER = ["-m", "worker"]
STATUS = ["-m", "services.cli", "outbox", "status"]
USERS = ["-m", "services.cli", "users", "create", "boss@waybill.example", "--role", "admin", "--generate"]
AUDIT = ["-m", "services.cli", "ledger", "audit"]
MIGRATE = ["-m", "services.cli", "migrate"]
WITH_SECRETS = {"api": (API, 1), "worker": (WORKER, 2), "outbox status": (STATUS, 1), "users": (USERS, 1)}
ORDINARY = "ordinary"
MEMBER = "member"

KEY = "WAYBILL_SECRET_KEY"
URL = "postgresql://me:hunter2@db.example/shop"
OF_SECRETS = {
    KEY: ("hunter2", "has 7 characters. Generate one of at least 32 random characters"),
    f"{KEY}_PREVIOUS": ("x" * 40, "repeats few characters or a short piece"),
    "WAYBILL_METRICS_TOKEN": ("x" * 40, "repeats few characters or a short piece"),
    "WAYBILL_MAIL_URL": ("console:", "console: writes tokens to the log"),
    "WAYBILL_DATABASE_ECHO": ("true", "writes every statement to the log"),
    "WAYBILL_ARGON2_MEMORY_KIB": ("12287", "must be at least 12288 with a WAYBILL_ARGON2_TIME_COST of 3"),
    "WAYBILL_DATABASE_LOCK_TIMEOUT": ("60", "must be at most 10, which is WAYBILL_DATABASE_STATEMENT_TIMEOUT"),
}
OF_ADDRESSES = {
    "WAYBILL_DATABASE_URL": (URL, "sends data to db.example unencrypted: append ?sslmode=verify-full"),
    "WAYBILL_DATABASE_REPLICA_URL": (f"{URL}?sslmode=require".replace(":hunter2", ""), "needs a password or a client"),
    "WAYBILL_REDIS_URL": ("rediss://redis.example:6379/0", "needs a password for redis.example"),
    "WAYBILL_DATABASE_POOL_SIZE": ("1000000", "Input should be less than or equal to 1000"),
    "WAYBILL_DATABSE_URL": ("x", "is set in the environment, but there is no such setting; did you mean WAYBILL_DATAB"),
    "WAYBILL_ANALYTICS_URL_FILE": ("/nowhere", "cannot read /nowhere: No such file or directory"),
}
"""For each variable, a value of a kind that production refuses, and why."""


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """A safe production on the test's servers, and more."""
    safe = {
        "WAYBILL_ENVIRONMENT": "production",
        "WAYBILL_DATABASE_URL": settings.database_url,
        "WAYBILL_REDIS_URL": settings.redis_url,
        "WAYBILL_SECRET_KEY": SECRET,
        "WAYBILL_EMAIL_VERIFICATION": "false",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WAYBILL_", "PG"))}
    return kept | {"PYTHONPATH": str(ROOT)} | safe | more


def run(arguments: list[str], given: Mapping[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(process: "subprocess.CompletedProcess[str]", code: int, reasons: Mapping[str, str]) -> None:
    """Assert that it says each reason on a line of standard error, and nothing else anywhere."""
    assert process.returncode == code, process.stderr
    assert process.stdout == ""
    head, *lines = process.stderr.splitlines()
    assert head.endswith(": the settings are not valid:"), process.stderr
    assert [name for name, why in reasons.items() if not any(f"  {name}: {why}" in line for line in lines)] == [], lines
    assert len(lines) == len(reasons), process.stderr
    assert "hunter2" not in process.stderr


@pytest.mark.parametrize("process", WITH_SECRETS)
def test_production_refuses_every_kind_of_unsafe_setting_at_once(
    settings: Settings, tmp_path: Path, process: str
) -> None:
    arguments, code = WITH_SECRETS[process]
    unsafe = OF_SECRETS | OF_ADDRESSES
    given = environment(settings, **{name: value for name, (value, _) in unsafe.items()})
    assert_refused(run(arguments, given, tmp_path), code, {name: why for name, (_, why) in unsafe.items()})


def test_production_refuses_the_development_secret(settings: Settings, tmp_path: Path) -> None:
    given = environment(settings, **{KEY: DEVELOPMENT_SECRET})
    assert_refused(run(API, given, tmp_path), 1, {KEY: "is the development secret, which everyone can read"})


def test_migrations_refuse_unsafe_addresses_names_and_ranges_but_need_no_secrets(
    settings: Settings, tmp_path: Path
) -> None:
    given = environment(settings, **{name: value for name, (value, _) in (OF_SECRETS | OF_ADDRESSES).items()})
    assert_refused(run(MIGRATE, given, tmp_path), 1, {name: why for name, (_, why) in OF_ADDRESSES.items()})
    without = run(MIGRATE, environment(settings, WAYBILL_SECRET_KEY="", WAYBILL_EMAIL_VERIFICATION=""), tmp_path)
    assert without.returncode == 0, without.stderr


def test_names_in_a_file_are_refused_too(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WAYBILL_HTTP_HSTSS=1\n")
    expected = {"WAYBILL_HTTP_HSTSS": "is set in .env, but there is no such setting; did you mean WAYBILL_HTTP_HSTS?"}
    assert_refused(run(API, environment(settings), tmp_path), 1, expected)


def test_in_development_a_misspelt_name_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    given = environment(settings, WAYBILL_ENVIRONMENT="development", WAYBILL_DATABSE_URL="x")
    shown = run(STATUS, given, tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.splitlines() == [
        "WAYBILL_DATABSE_URL is set in the environment, but there is no such setting; did you mean "
        "WAYBILL_DATABASE_URL?"
    ]


@pytest.fixture
def roles(settings: Settings) -> Iterator[dict[str, str]]:
    """Addresses of the test's database: as an ordinary role, which owns the tables, and as a superuser's member."""
    url = make_url(settings.database_url)
    name = url.database
    assert name
    made = {role: f"{role}_{name}"[:63] for role in (ORDINARY, MEMBER)}
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        for role in made.values():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw'").format(sql.Identifier(role)))
        granted = map(sql.Identifier, (str(make_url(superuser_of(settings)).username), made[MEMBER]))
        connection.execute(sql.SQL("GRANT {} TO {}").format(*granted))
        owned = sql.SQL("GRANT ALL ON SCHEMA public TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {0}")
        connection.execute(owned.format(sql.Identifier(made[ORDINARY])))
    yield {
        kind: url.set(username=role, password="pw").render_as_string(hide_password=False) for kind, role in made.items()
    }
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        for role in made.values():
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (API, 3, "superuser"),
        (WORKER, 1, "superuser"),
        (STATUS, 1, MEMBER),
        (USERS, 1, "superuser"),
        (AUDIT, 3, "superuser"),
    ],
    ids=["api", "worker", "outbox status", "users", "audit"],
)
def test_production_refuses_a_superuser(
    settings: Settings, roles: dict[str, str], tmp_path: Path, arguments: list[str], code: int, kind: str
) -> None:
    url = roles.get(kind, superuser_of(settings))
    refused = run(arguments, environment(settings, WAYBILL_DATABASE_URL=url), tmp_path)
    said = refused.stdout + refused.stderr
    assert refused.returncode == code, said
    assert f"the role {make_url(url).username} at postgresql://" in said
    assert "is a superuser, or may become one" in said
    assert "Traceback" not in said


def test_an_ordinary_role_and_development_are_accepted(
    settings: Settings, roles: dict[str, str], tmp_path: Path
) -> None:
    for more in ({"WAYBILL_DATABASE_URL": roles[ORDINARY]}, {"WAYBILL_ENVIRONMENT": "development"}):
        shown = run(STATUS, environment(settings, **more), tmp_path)
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("arguments", [API, SEVERAL], ids=["one", "several"])
def test_the_development_secret_is_for_this_machine_only(
    settings: Settings, tmp_path: Path, arguments: list[str], host: str
) -> None:
    given = environment_of(settings) | {"WAYBILL_SECRET_KEY": DEVELOPMENT_SECRET, "PYTHONPATH": str(ROOT)}
    refused = run([*arguments, "--host", host], given, tmp_path)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert f"with the development secret, the API listens on this machine only, and not on {host}" in refused.stderr
    assert "set WAYBILL_SECRET_KEY to a key of your own" in refused.stderr


@pytest.mark.parametrize(("host", "secret"), [("127.0.0.1", DEVELOPMENT_SECRET), ("0.0.0.0", SECRET)])
def test_another_key_or_this_machine_is_accepted(settings: Settings, tmp_path: Path, host: str, secret: str) -> None:
    more: dict[str, Any] = {"secret_key": secret}
    given = Settings(_env_file=None, **settings.model_dump() | more)
    with running([*API, "--host", host], given, tmp_path / "api.log") as api:
        wait_until(lambda: not api.lives or "Application startup complete" in api.said(), "the API to start")
        assert api.lives, api.said()
