"""Settings refuse what is malformed and, outside development, what is unsafe."""

from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import quote_plus

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from services.settings import Environment, Settings, explain, get_settings
from tests.secret import SECRET

ALMOST_NOTHING_IS_FINE = {"adjustment_approval_above", "operator_approval_above"}


def production(**given: Any) -> Settings:
    safe = {
        "environment": "production",
        "secret_key": SECRET,
        "mail_url": "file:///var/mail",
        "private_hosts": "db.example,replica",
    }
    return Settings(_env_file=None, **safe | given)


def annotated(field: FieldInfo) -> set[Any]:
    """The types of a setting; for `Annotated[float, ...] | None`, these are float and None."""
    parts = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    return {get_args(part)[0] if get_origin(part) is Annotated else part for part in parts}


def test_the_environment_is_production_unless_set_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_SECRET_KEY", SECRET)
    monkeypatch.setenv("WAYBILL_MAIL_URL", "file:///var/mail")
    assert Settings(_env_file=None).environment is Environment.production


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if {int, float, Decimal} & annotated(field)]
)
def test_every_number_has_bounds(name: str) -> None:
    """None of them may be so large, or so small, that the limit that it sets is none."""
    for absurd in ("1e17", "-2", "nan", "inf", "-inf", "0.0001"):
        if absurd == "0.0001" and name in ALMOST_NOTHING_IS_FINE:
            continue
        with pytest.raises(ValidationError) as refused:
            production(**{name: absurd})
        assert {error["loc"] for error in refused.value.errors()} == {(name,)}, absurd


def test_there_are_numbers_among_the_settings() -> None:
    assert len([field for field in Settings.model_fields.values() if {int, float} & annotated(field)]) > 40


def test_every_fault_is_reported_at_once_on_a_line_of_its_own() -> None:
    with pytest.raises(ValidationError) as refused:
        production(
            database_pool_size=0,
            outbox_time_limit=40.0,
            secret_key="short",
            database_url="postgresql://me@elsewhere.example/shop",
            redis_url="nonsense",
        )
    head, *lines = explain(refused.value).splitlines()
    assert head == "the settings are not valid:"
    assert [line.partition(": ")[0].strip() for line in lines] == [
        "WAYBILL_DATABASE_POOL_SIZE",
        "WAYBILL_REDIS_URL",
        "WAYBILL_WORKER_STALL_LIMIT",
        "WAYBILL_SECRET_KEY",
        "WAYBILL_DATABASE_URL",
        "WAYBILL_DATABASE_URL",
    ]


def test_a_worker_is_given_time_for_a_batch_that_is_tried_in_parts_before_it_counts_as_stalled() -> None:
    with pytest.raises(ValidationError, match=r"worker_stall_limit\n  must be at least 160"):
        production(outbox_time_limit=40.0)
    assert production(outbox_time_limit=40.0, worker_stall_limit=160.0).worker_stall_limit == 160.0
    with pytest.raises(ValidationError, match=r"worker_stall_limit\n  must be at least 8"):
        production(outbox_time_limit=1.0, outbox_poll_interval=4.0, worker_stall_limit=7.0)


def test_an_empty_metrics_token_is_none() -> None:
    assert production(metrics_token="").metrics_token is None


def test_an_empty_address_of_a_replica_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_REPLICA_URL", "")
    settings = production()
    assert settings.database_replica_url is None
    assert settings.replica_url() is None


def test_a_refusal_does_not_print_the_secret() -> None:
    with pytest.raises(ValidationError) as refused:
        production(secret_key="hunter2-hunter2")
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(production(secret_key=f"hunter2{SECRET}"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("environment", "staging"),
        ("log_level", "debug"),
        ("log_format", "xml"),
        ("database_url", "mysql://localhost/waybill"),
        ("database_url", "not a url"),
        ("database_url", ""),
        ("database_replica_url", "sqlite:///x"),
        ("database_replica_max_lag", 0.5),
        ("database_schema", "Robert'); DROP TABLE users"),
        ("database_schema", ""),
        ("database_schema", "x" * 64),
        ("database_pool_size", 0),
        ("database_max_overflow", -1),
        ("database_pool_timeout", 0),
        ("api_processes", 0),
        ("worker_processes", -1),
        ("redis_url", "localhost:6379"),
        ("access_token_ttl", 59),
        ("max_body_bytes", 1023),
        ("transaction_attempts", 0),
        ("outbox_poll_interval", 0),
        ("outbox_batch_size", 0),
        ("outbox_batch_size", 5001),
        ("outbox_max_attempts", 0),
        ("worker_shutdown_grace", 0),
        ("audit_time_limit", 0),
        ("audit_time_limit", 3001),
        ("database_pool_size", "many"),
    ],
)
def test_a_malformed_value_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        production(**{name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_SECRET_KEY", SECRET)
    monkeypatch.setenv("WAYBILL_MAIL_URL", "file:///var/mail")
    monkeypatch.setenv("WAYBILL_DATABASE_POOL_SIZE", "3")
    get_settings.cache_clear()
    try:
        assert get_settings().database_pool_size == 3
        assert get_settings() is get_settings()
    finally:
        get_settings.cache_clear()


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValidationError):
        production().database_pool_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_an_address_is_passed_to_the_driver_in_the_form_that_it_expects(scheme: str) -> None:
    settings = production(database_url=f"{scheme}://me:p%40ss@db.example:5433/shop")
    assert settings.async_url().render_as_string(False) == "postgresql+asyncpg://me:p%40ss@db.example:5433/shop"
    assert settings.replica_url() is None


def test_options_for_tls_are_those_of_libpq(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.touch()
    tls = f"sslmode=verify-full&sslrootcert={authority}"
    url = production(database_url=f"postgresql://me:pw@db.example/shop?{tls}&target_session_attrs=primary").async_url()
    assert url.query == {
        "target_session_attrs": "primary",
        "dsn": f"postgresql:///?sslmode=verify-full&sslrootcert={quote_plus(str(authority))}",
    }


@pytest.mark.parametrize("name", ["database_url", "database_replica_url", "migration_database_url", "analytics_url"])
@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("sslmode=require&ssl=disable", "sslmode and ssl are two names of one option; leave ssl out"),
        ("sslmode=verify", "sslmode must be one of: disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=verify-full", "sslmode=verify-full needs sslrootcert=FILE"),
        ("sslmode=verify-full&sslrootcert=/nowhere.crt", "sslrootcert: cannot read /nowhere.crt: No such file"),
        ("sslcert=/nowhere.crt", "sslcert: cannot read /nowhere.crt: No such file"),
        ("sslkey=/nowhere.key", "sslkey: cannot read /nowhere.key: No such file"),
    ],
)
def test_a_fault_in_the_options_for_tls_is_named(name: str, options: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        production(**{name: f"postgresql://me@db.example/shop?{options}"})


def test_the_certificates_that_the_machine_trusts_can_be_used() -> None:
    url = production(
        database_url="postgresql://me:pw@db.example/shop?sslmode=verify-full&sslrootcert=system"
    ).async_url()
    assert str(url.query["dsn"]).startswith("postgresql:///?sslmode=verify-full&sslrootcert=%2F")


def test_an_unknown_option_in_an_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown options in the URL: sslmod"):
        production(database_url="postgresql://me@db.example/shop?sslmod=require")


def test_a_replica_has_its_own_address() -> None:
    settings = production(database_replica_url="postgresql://me:pw@replica/shop")
    replica = settings.replica_url()
    assert replica is not None
    assert replica.host == "replica"
    assert settings.async_url().host == "localhost"


def test_an_empty_export_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_EVENT_EXPORT_PATH", "")
    assert Settings(_env_file=None, environment=Environment.development).event_export_path is None


@pytest.mark.parametrize("url", ["postgresql://a@db:5432/shop", "postgresql://b:c@db:5432/shop"])
def test_the_analytics_database_is_another_one(url: str) -> None:
    given: dict[str, Any] = {"environment": Environment.development, "database_url": "postgresql://a@db:5432/shop"}
    with pytest.raises(ValidationError, match=r"analytics_url\n  must name a different database"):
        Settings(_env_file=None, analytics_url=url, **given)
    assert Settings(_env_file=None, analytics_url="", **given).analytics_url is None


@pytest.mark.parametrize(
    ("url", "connections"),
    [("postgresql://a@db/reports", 4 * 3 + 5 * 2), ("postgresql://a@other/reports", 0), (None, 0)],
)
def test_connections_to_an_analytics_database_on_the_primarys_server_are_counted(
    url: str | None, connections: int
) -> None:
    settings = Settings(
        _env_file=None,
        environment=Environment.development,
        database_url="postgresql://a@db:5432/shop",
        analytics_url=url,
        api_processes=4,
        worker_processes=5,
    )
    assert settings.analytics_connections == connections
