"""How commands find a running `waybill up`, and when they do not use it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.console import CommandError
from services.cli.facts import Facts, ProcessIds
from services.cli.main import COMMANDS, app, load
from services.cli.running import find_running, holder, using
from services.local.home import hold
from services.settings import get_settings

URL = "postgresql://waybill_app:one@127.0.0.1:5432/waybill"
OWNER_URL = "postgresql://waybill_owner:two@127.0.0.1:5432/waybill"


@pytest.fixture(autouse=True)
def _shell_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WAYBILL_")]:
        monkeypatch.delenv(name)


@contextmanager
def running(folder: Path = Path(".waybill"), environment: str = "development") -> Iterator[Path]:
    """What a `waybill up` that runs leaves in its data folder."""
    with hold(folder) as home:
        home.secret_key()
        Facts(
            api_url="http://127.0.0.1:8000",
            docs_url="http://127.0.0.1:8000/docs",
            database_url=URL,
            migration_database_url=OWNER_URL,
            database_schema="shop",
            redis_url="redis://127.0.0.1:6379/3",
            secret_key_file=home.secret_key_file,
            data_dir=home.path,
            environment=environment,
            pids=ProcessIds(supervisor=os.getpid()),
        ).write()
        yield home.path


def test_the_one_in_the_default_folder_is_found_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as data, using(None):
        settings = get_settings()
        assert (settings.database_url, settings.migration_database_url) == (URL, OWNER_URL)
        assert (settings.database_schema, settings.redis_url) == ("shop", "redis://127.0.0.1:6379/3")
        assert settings.is_development
        assert settings.secret_key.get_secret_value() == (data / "secret_key").read_text().strip()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"Using the `waybill up` in {data} (process {os.getpid()}).\n")
    assert not [name for name in os.environ if name.startswith("WAYBILL_")]


def test_processes_that_serve_do_not_get_the_address_with_the_owner_of_the_tables() -> None:
    with running(), using(None, as_process=True):
        assert get_settings().database_url == URL
        assert get_settings().migration_database_url is None


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_database_that_is_set_is_used_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    mine = URL.replace("5432", "6543")
    if where == ".env":
        Path(".env").write_text(f"WAYBILL_ENVIRONMENT=development\nWAYBILL_DATABASE_URL={mine}\n")
    else:
        monkeypatch.setenv("WAYBILL_ENVIRONMENT", "development")
        monkeypatch.setenv("WAYBILL_DATABASE_URL", mine)
    with running(), using(None):
        assert get_settings().database_url == mine
    assert capsys.readouterr().err == ""


def test_other_settings_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_SCHEMA", "mine")
    monkeypatch.setenv("WAYBILL_SECRET_KEY", "k" * 40)
    with running(), using(None):
        settings = get_settings()
        assert (settings.database_url, settings.database_schema) == (URL, "mine")
        assert settings.secret_key.get_secret_value() == "k" * 40
    assert os.environ["WAYBILL_DATABASE_SCHEMA"] == "mine"


def test_a_folder_that_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("url").write_text(URL.replace("5432", "6543"))
    monkeypatch.setenv("WAYBILL_DATABASE_URL_FILE", "url")
    monkeypatch.setenv("WAYBILL_REDIS_URL", "redis://elsewhere:6379/0")
    with running(Path("other")) as data, using(data):
        assert (get_settings().database_url, get_settings().redis_url) == (URL, "redis://127.0.0.1:6379/3")
    assert os.environ["WAYBILL_DATABASE_URL_FILE"] == "url"
    assert os.environ["WAYBILL_REDIS_URL"] == "redis://elsewhere:6379/0"


def test_settings_for_production_never_reach_one_for_development(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "production")
    with running(), using(None):
        assert "WAYBILL_DATABASE_URL" not in os.environ
    assert capsys.readouterr().err == ""


def test_one_that_has_ended_is_not_found_even_if_its_process_id_is_in_use_again() -> None:
    with running() as data:
        assert find_running(data) is not None
        assert holder(data) == os.getpid()
    # Its files still name a process that lives: this one.
    assert (data / "lock").read_text().strip() == str(os.getpid())
    assert find_running(data) is None
    assert holder(data) is None


def test_one_that_is_still_starting_is_not_used() -> None:
    with running() as data:
        pass
    facts = Facts.model_validate_json((data / "waybill.json").read_bytes())
    facts.pids.supervisor = 1
    facts.write()
    with hold(data):
        assert find_running(data) is None
        with pytest.raises(CommandError, match="is starting or stopping in"), using(data):
            pass


def test_a_folder_without_one_is_an_error_if_it_was_given() -> None:
    result = CliRunner().invoke(app, ["outbox", "status", "--data-dir", "nowhere"])
    assert result.exit_code == 1
    assert result.stderr == f"waybill: `waybill up` is not running in {Path('nowhere').absolute()}\n"


def test_if_nothing_is_set_and_nothing_runs_the_message_says_both() -> None:
    result = CliRunner().invoke(app, ["outbox", "status"])
    assert result.exit_code == 1
    missing = f"WAYBILL_DATABASE_URL is not set, and no `waybill up` is running in {Path('.waybill').absolute()}.\n"
    assert result.stderr.endswith(missing)


def leaves(command: object, name: str) -> Iterator[tuple[str, set[str]]]:
    """Each command below this one, with the names of its options."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, {parameter.name for parameter in command.params}  # type: ignore[attr-defined]
        return
    for sub, one in below.items():
        yield from leaves(one, f"{name} {sub}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_data_folder(name: str) -> None:
    assert [leaf for leaf, options in leaves(load(name), name) if "data_dir" not in options] == []
