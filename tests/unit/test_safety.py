"""What production refuses, rule by rule, and that development does not mind."""

import re
import secrets
import string
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from services.safety import DEVELOPMENT_SECRET, RULES, is_loopback, keys_are_strong
from services.settings import Environment, MigrationSettings, Settings, explain
from tests.secret import SECRET

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "production-checks.md"

SAFE: dict[str, Any] = {"secret_key": SECRET, "mail_url": "smtps://mail.example"}
DB = "postgresql://me:pw@db.example/shop"
FILE = Path(__file__)


def faults(**given: Any) -> list[str]:
    """What production says of these settings, with the rest as it should be."""
    try:
        Settings(_env_file=None, environment=Environment.production, **SAFE | given)
    except ValidationError as error:
        return [line.strip() for line in explain(error).splitlines()[1:]]
    return []


def random_keys(number: int) -> list[str]:
    """Keys as people generate them: base64, hexadecimal digits, letters and digits."""
    alphabet = string.ascii_letters + string.digits
    return [
        key
        for _ in range(number)
        for key in (
            secrets.token_urlsafe(48),
            secrets.token_hex(16),
            "".join(secrets.choice(alphabet) for _ in range(32)),
        )
    ]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the development secret": (
        {"secret_key": DEVELOPMENT_SECRET},
        ["WAYBILL_SECRET_KEY: is the development secret, which everyone can read. Generate one of at least 32"],
    ),
    "an empty key": ({"secret_key": ""}, ["WAYBILL_SECRET_KEY: has 0 characters. Generate"]),
    "a short key": ({"secret_key": SECRET[:31]}, ["WAYBILL_SECRET_KEY: has 31 characters. Generate"]),
    "one character": ({"secret_key": "a" * 48}, ["WAYBILL_SECRET_KEY: repeats few characters"]),
    "few characters": ({"secret_key": "aZ9k2xZa29kxa9Z2kaxZ9ka2xxZ2a9kk"}, ["WAYBILL_SECRET_KEY: repeats few"]),
    "a short piece": ({"secret_key": "k9Xw2LpQ" * 4}, ["WAYBILL_SECRET_KEY: repeats few characters or a short piece"]),
    "a long piece": ({"secret_key": SECRET[:20] * 2}, ["WAYBILL_SECRET_KEY: repeats few characters or a short piece"]),
    "a sequence": ({"secret_key": "0123456789abcdefghijklmnopqrstuvwxyz"}, ["WAYBILL_SECRET_KEY: repeats few"]),
    "an example": ({"secret_key": f"ChangeMe-{SECRET}"}, ["WAYBILL_SECRET_KEY: is an example"]),
    "a weak previous key": ({"secret_key_previous": "b" * 32}, ["WAYBILL_SECRET_KEY_PREVIOUS: repeats few"]),
    "a short previous key": ({"secret_key_previous": "b2"}, ["WAYBILL_SECRET_KEY_PREVIOUS: has 2 characters"]),
    "the development secret as the previous key": (
        {"secret_key_previous": DEVELOPMENT_SECRET},
        ["WAYBILL_SECRET_KEY_PREVIOUS: is the development secret"],
    ),
    "the same previous key": ({"secret_key_previous": SECRET}, ["WAYBILL_SECRET_KEY_PREVIOUS: is the same as"]),
    "a short metrics token": ({"metrics_token": SECRET[:15]}, ["WAYBILL_METRICS_TOKEN: has 15 characters"]),
    "a weak metrics token": ({"metrics_token": "a" * 16}, ["WAYBILL_METRICS_TOKEN: repeats few"]),
    "mails in the log": ({"mail_url": "console:"}, ["WAYBILL_MAIL_URL: console: writes tokens to the log"]),
    "no mails": ({"mail_url": ""}, ["WAYBILL_MAIL_URL: must be set"]),
    "logged statements": ({"database_echo": True}, ["WAYBILL_DATABASE_ECHO: writes every statement to the log"]),
    "cheap hashes": (
        {"argon2_memory_kib": 12_287},
        ["WAYBILL_ARGON2_MEMORY_KIB: must be at least 12288 with a WAYBILL_ARGON2_TIME_COST of 3"],
    ),
    "many passes over little memory": (
        {"argon2_memory_kib": 12_287, "argon2_time_cost": 100},
        ["WAYBILL_ARGON2_MEMORY_KIB: must be at least 12288"],
    ),
    "two passes over little memory": (
        {"argon2_memory_kib": 19_455, "argon2_time_cost": 2},
        ["WAYBILL_ARGON2_MEMORY_KIB: must be at least 19456"],
    ),
    "one pass over little memory": (
        {"argon2_memory_kib": 47_103, "argon2_time_cost": 1},
        ["WAYBILL_ARGON2_MEMORY_KIB: must be at least 47104"],
    ),
    "a wait for a lock that outlasts the statement": (
        {"database_lock_timeout": 11.0},
        ["WAYBILL_DATABASE_LOCK_TIMEOUT: must be at most 10, which is WAYBILL_DATABASE_STATEMENT_TIMEOUT"],
    ),
    "a statement that outlasts the transaction": (
        {"database_statement_timeout": 21.0},
        ["WAYBILL_DATABASE_STATEMENT_TIMEOUT: must be at most 20, which is WAYBILL_DATABASE_TRANSACTION_TIMEOUT"],
    ),
    "a first pause above the longest": (
        {"sign_in_first_pause": 301.0},
        ["WAYBILL_SIGN_IN_FIRST_PAUSE: must be at most 300, which is WAYBILL_SIGN_IN_MAX_PAUSE"],
    ),
    "a first delay above the longest": (
        {"outbox_retry_base": 301.0},
        ["WAYBILL_OUTBOX_RETRY_BASE: must be at most 300, which is WAYBILL_OUTBOX_RETRY_CAP"],
    ),
    "sessions that idle beyond their end": (
        {"session_idle_ttl": 8_000_000},
        ["WAYBILL_SESSION_IDLE_TTL: must be at most 7.776e+06, which is WAYBILL_SESSION_MAX_TTL"],
    ),
    "a database elsewhere without a password": (
        {"database_url": "postgresql://me@db.example/shop?sslmode=require"},
        ["WAYBILL_DATABASE_URL: needs a password or a client certificate for db.example: postgresql://USER:PASSWORD@"],
    ),
    "a database elsewhere without TLS": (
        {"database_url": DB},
        ["WAYBILL_DATABASE_URL: sends data to db.example unencrypted: append ?sslmode=verify-full"],
    ),
    "a database elsewhere that may use TLS": (
        {"database_url": f"{DB}?sslmode=prefer"},
        ["WAYBILL_DATABASE_URL: sends data to db.example unencrypted"],
    ),
    "a database on one of several hosts": (
        {"database_url": "postgresql://me:pw@/shop?host=localhost:5432&host=db.example:5432"},
        ["WAYBILL_DATABASE_URL: sends data to db.example unencrypted"],
    ),
    "a replica elsewhere": (
        {"database_replica_url": "postgresql://me@db.example/shop"},
        [
            "WAYBILL_DATABASE_REPLICA_URL: needs a password or a client certificate for db.example",
            "WAYBILL_DATABASE_REPLICA_URL: sends data to db.example unencrypted",
        ],
    ),
    "analytics elsewhere": (
        {"analytics_url": "postgresql://me:pw@10.0.0.7/reports"},
        ["WAYBILL_ANALYTICS_URL: sends data to 10.0.0.7 unencrypted"],
    ),
    "a private host without a password": (
        {"database_url": "postgresql://me@db.example/shop", "private_hosts": "db.example"},
        ["WAYBILL_DATABASE_URL: needs a password"],
    ),
    "another private host": (
        {"database_url": DB, "private_hosts": "postgres, other.example"},
        ["WAYBILL_DATABASE_URL: sends data to db.example unencrypted"],
    ),
    "Redis elsewhere without a password": (
        {"redis_url": "rediss://redis.example:6379/0"},
        ["WAYBILL_REDIS_URL: needs a password for redis.example: rediss://:PASSWORD@HOST:PORT/DB"],
    ),
    "Redis elsewhere without TLS": (
        {"redis_url": "redis://:pw@redis.example:6379/0"},
        ["WAYBILL_REDIS_URL: sends data to redis.example unencrypted: use rediss://"],
    ),
    "Redis on a private host without a password": (
        {"redis_url": "redis://redis:6379/0", "private_hosts": "postgres,redis"},
        ["WAYBILL_REDIS_URL: needs a password for redis"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_values_are_refused_outside_development_only(case: str) -> None:
    given, expected = REFUSED[case]
    found = faults(**given)
    assert len(found) == len(expected), found
    assert [line for line, start in zip(found, expected, strict=True) if not line.startswith(start)] == []
    Settings(_env_file=None, environment=Environment.development, **SAFE | given)


@pytest.mark.parametrize(
    "given",
    [
        {"secret_key_previous": SECRET[::-1], "metrics_token": "0f3a9b2c7d1e4f6a"},
        {"database_url": f"{DB}?sslmode=require"},
        {
            "database_url": f"{DB}?sslmode=verify-full&sslrootcert=system",
            "database_replica_url": f"{DB}?sslmode=verify-ca&sslrootcert=system",
        },
        {"database_url": f"postgresql://me@db.example/shop?sslmode=require&sslcert={FILE}&sslkey={FILE}"},
        {"database_url": "postgresql://me@db.example/shop?sslmode=require&passfile=/pgpass"},
        {"database_url": "postgresql://me@localhost/shop"},
        {"database_url": "postgresql://me@[::1]:5432/shop"},
        {"database_url": "postgresql://me@/shop?host=/run/postgresql"},
        {"database_url": "postgresql:///shop"},
        {"database_url": DB, "private_hosts": "redis, db.example"},
        {"redis_url": "unix:///run/redis.sock"},
        {"redis_url": "redis://127.0.0.1:6379/0"},
        {"redis_url": "rediss://:pw@redis.example:6379/0"},
        {"redis_url": "redis://:pw@redis:6379/0", "private_hosts": "redis"},
    ],
    ids=str,
)
def test_safe_values_are_accepted(given: dict[str, Any]) -> None:
    assert faults(**given) == []


def test_a_password_in_the_environment_of_the_driver_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {"database_url": "postgresql://me@db.example/shop?sslmode=require"}
    assert len(faults(**without)) == 1
    monkeypatch.setenv("PGPASSWORD", "pw")
    assert faults(**without) == []


def test_a_host_in_the_environment_of_the_driver_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert len(faults(database_url="postgresql://me@/shop")) == 2


def test_random_keys_are_not_called_weak() -> None:
    settings = Settings(_env_file=None, environment=Environment.production, **SAFE, email_verification=False)

    def is_weak(key: str) -> bool:
        return any(keys_are_strong(settings.model_copy(update={"secret_key": SecretStr(key)})))

    assert [key for key in random_keys(2000) if is_weak(key)] == []


def test_no_fault_contains_a_secret() -> None:
    found = faults(
        secret_key="hunter2" * 6,
        metrics_token="hunter2",
        database_url="postgresql://me:hunter2@db.example/shop",
        redis_url="redis://:hunter2@redis.example:6379/0",
    )
    assert len(found) == 4
    assert "hunter2" not in "".join(found)


def test_every_address_among_the_settings_is_checked() -> None:
    """Also one that is added later: a setting that is called `..._url` needs no rule of its own."""

    class More(Settings):
        ledger_url: str | None = None
        secret_url: SecretStr | None = None

    given = dict.fromkeys((name for name in More.model_fields if name.endswith("_url") and name != "mail_url"), DB)
    given |= {"redis_url": "redis://:pw@db.example", "analytics_url": "postgresql://me:pw@db.example/reports"}
    with pytest.raises(ValidationError) as refused:
        More(_env_file=None, environment=Environment.production, **SAFE | given)
    assert {str(error["loc"][0]) for error in refused.value.errors()} == set(given)


def test_a_process_that_only_migrates_needs_a_safe_address_but_no_secrets() -> None:
    assert not MigrationSettings(_env_file=None).is_development
    with pytest.raises(ValidationError, match=r"sends data to db\.example unencrypted"):
        MigrationSettings(_env_file=None, database_url=DB)
    MigrationSettings(_env_file=None, environment=Environment.development, database_url=DB)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST", "/run/waybill.sock"]
)
def test_what_is_on_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "127.0.0.1.example", "localhost.example", "waybill"])
def test_what_is_not_on_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_page_lists_every_rule() -> None:
    page = " ".join(PAGE.read_text().split())
    said = [" ".join((rule.__doc__ or "").split()) for rule in RULES]
    assert all(said)
    assert [rule for rule in said if f"| {rule} |" not in page] == []
    assert len(re.findall(r"^\| [A-Z]", PAGE.read_text(), re.MULTILINE)) == len(RULES)
