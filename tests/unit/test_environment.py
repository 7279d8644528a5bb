"""Names in the environment and in `.env`: unknown ones, and those of files with a setting's value."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.environment import PREFIX, unknown_names
from services.settings import Settings, explain, given_settings, warn_once
from tests.secret import SECRET


@pytest.fixture(autouse=True)
def _in_production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "production")
    monkeypatch.setenv("WAYBILL_SECRET_KEY", SECRET)
    monkeypatch.setenv("WAYBILL_EMAIL_VERIFICATION", "false")
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def faults() -> list[str]:
    try:
        Settings()
    except ValidationError as error:
        return [line.strip() for line in explain(error).splitlines()[1:]]
    return []


def test_names_that_are_not_settings_are_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults() == []
    monkeypatch.setenv("WAYBILL_DATABSE_URL", "postgresql://localhost/shop")
    monkeypatch.setenv("WAYBILL_XYZZY", "")
    Path(".env").write_text("WAYBILL_HTTP_HSTSS=1\nPOSTGRES_PASSWORD=x\n#WAYBILL_COMMENT=1\nMY_WAYBILL_X=1\n")
    assert faults() == [
        "WAYBILL_DATABSE_URL: is set in the environment, but there is no such setting; did you mean "
        "WAYBILL_DATABASE_URL?",
        "WAYBILL_XYZZY: is set in the environment, but there is no such setting; see docs/reference/settings.md",
        "WAYBILL_HTTP_HSTSS: is set in .env, but there is no such setting; did you mean WAYBILL_HTTP_HSTS?",
    ]


def test_in_development_they_are_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "development")
    monkeypatch.setenv("WAYBILL_WORKERS", "3")
    with caplog.at_level(logging.WARNING):
        Settings()
        Settings()
    assert [record.getMessage() for record in caplog.records] == [
        "WAYBILL_WORKERS is set in the environment, but there is no such setting; did you mean "
        "WAYBILL_WORKER_PROCESSES?"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "WAYBILL_TEST_DATABASE_URL",
        "WAYBILL_OPERATOR_PASSWORD",
        "WAYBILL_APPROVER_EMAIL",
        "WAYBILL_PORT",
        "WAYBILL_SERVICE_HOST",
        "WAYBILL_SERVICE_PORT_HTTP",
        "WAYBILL_API_PORT_8000_TCP_ADDR",
        "WAYBILL_POSTGRES_PORT_5432_TCP",
        "WAYBILL_SECRET_KEY_FILE",
        "WAYBILL_DATABASE_URL_FILE",
        "waybill_log_level",
    ],
)
def test_names_of_settings_and_those_that_others_set_are_accepted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "" if name.endswith("_FILE") else "INFO")
    assert faults() == []


def test_no_setting_is_called_like_what_others_set() -> None:
    # A service called waybill-api-metrics would be described so: our manifests turn that off (`enableServiceLinks`).
    ours = {"api_metrics_port", "worker_metrics_port"}
    unlike = {fault.setting for fault in unknown_names([PREFIX + name for name in Settings.model_fields], [], "x")}
    assert unlike == Settings.model_fields.keys() - ours


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WAYBILL_SECRET_KEY")
    (tmp_path / "key").write_text(f"{SECRET}\n")
    (tmp_path / "url").write_text("redis://:pw@127.0.0.1:6379/3")
    monkeypatch.setenv("WAYBILL_SECRET_KEY_FILE", str(tmp_path / "key"))
    Path(".env").write_text("WAYBILL_REDIS_URL_FILE=url\nWAYBILL_SECRET_KEY=of-the-file-that-is-overridden\n")
    settings = Settings()
    assert settings.secret_key.get_secret_value() == SECRET
    assert settings.redis_url == "redis://:pw@127.0.0.1:6379/3"
    given = given_settings()
    assert (given["secret_key"], given["redis_url"]) == (SECRET, "redis://:pw@127.0.0.1:6379/3")


def test_a_file_that_cannot_be_read_and_a_value_that_is_there_twice_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WAYBILL_SECRET_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("WAYBILL_METRICS_TOKEN_FILE", "nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff")
    monkeypatch.setenv("WAYBILL_REDIS_URL_FILE", "bytes")
    assert faults() == [
        "WAYBILL_REDIS_URL_FILE: cannot read bytes: it is not UTF-8",
        "WAYBILL_SECRET_KEY: is set in the environment, and so is its file; remove one of them",
        "WAYBILL_METRICS_TOKEN_FILE: cannot read nowhere: No such file or directory",
    ]


def test_an_unreadable_file_is_refused_in_development_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "development")
    monkeypatch.setenv("WAYBILL_METRICS_TOKEN_FILE", "nowhere")
    assert faults() == ["WAYBILL_METRICS_TOKEN_FILE: cannot read nowhere: No such file or directory"]
