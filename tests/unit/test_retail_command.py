"""What `waybill import-retail` prints before it contacts a service, and how it shows its progress."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.console import NOT_FINISHED, CommandError
from services.cli.main import app
from services.cli.progress import Lines
from services.cli.target import find_target
from services.local.home import hold

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
GOOD = HEADER + "536365,85123A,HEART,6,2010-12-01 08:26:00,2.55,17850,United Kingdom\n"
OPERATOR = {"email": "operator@waybill.example", "password": "secret-word", "full_name": "Olga"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["import-retail", *map(str, arguments)], env={"WAYBILL_OPERATOR_EMAIL": None})


@contextmanager
def running(folder: Path, operator: dict[str, str] | None = OPERATOR) -> Iterator[Path]:
    """What a `waybill up` that runs leaves in its data folder."""
    with hold(folder / "data") as home:
        facts = {
            "api_url": "http://127.0.0.1:8000",
            "docs_url": "http://127.0.0.1:8000/docs",
            "database_url": "postgresql://...",
            "redis_url": "redis://...",
            "data_dir": str(home.path),
            "environment": "development",
            "operator": operator,
            "pids": {"supervisor": os.getpid()},
        }
        (home.path / "waybill.json").write_text(json.dumps(facts))
        yield home.path


@pytest.fixture
def retail(tmp_path: Path) -> Path:
    path = tmp_path / "retail.csv"
    path.write_text(GOOD)
    return path


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere.csv")
    assert result.exit_code == NOT_FINISHED
    assert "nowhere.csv cannot be read: No such file" in result.stderr


def test_a_file_of_another_format_is_reported(retail: Path) -> None:
    retail.write_text(GOOD.replace("Quantity", "Number"))
    result = run(retail)
    assert result.exit_code == NOT_FINISHED
    assert "lacks the column Quantity" in result.stderr


def test_if_no_service_is_known_it_says_how_to_start_one(retail: Path, tmp_path: Path) -> None:
    result = run(retail, "--data-dir", tmp_path)
    assert result.exit_code == NOT_FINISHED
    assert "waybill up" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("options", [["--limit", "0"], ["--concurrency", "0"], ["--limit", "many"]])
def test_an_invalid_option_is_refused(retail: Path, options: list[str]) -> None:
    assert run(retail, *options).exit_code == 2


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://there", "http://", "http://there:port"])
def test_an_invalid_url_is_refused(retail: Path, url: str) -> None:
    result = run(retail, "--url", url, "--operator-email", "a@b.example", "--operator-password", "secret")
    assert result.exit_code == NOT_FINISHED
    assert repr(url) in result.stderr
    assert not result.stdout


def test_the_service_of_a_running_waybill_up_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as data:
        target = find_target(data, None, None, None)
    assert (target.url, target.operator.email) == ("http://127.0.0.1:8000", OPERATOR["email"])
    assert capsys.readouterr().err == f"Using the `waybill up` in {data} (process {os.getpid()}).\n"


def test_the_service_of_one_that_has_ended_is_not_used(tmp_path: Path) -> None:
    with running(tmp_path) as data:
        pass
    with pytest.raises(CommandError, match=f"no `waybill up` is running in {data}"):
        find_target(data, None, None, None)


def test_a_service_given_by_its_url_gets_the_operator_that_was_given(tmp_path: Path) -> None:
    with running(tmp_path) as data:
        target = find_target(data, "http://elsewhere:8000", "other@waybill.example", "word")
    assert (target.url, target.operator.email) == ("http://elsewhere:8000", "other@waybill.example")


def test_credentials_are_never_sent_to_another_service_than_their_own(tmp_path: Path) -> None:
    with running(tmp_path) as data:
        assert find_target(data, "http://127.0.0.1:8000", None, None).operator.email == OPERATOR["email"]
        with pytest.raises(CommandError, match="an operator is needed"):
            find_target(data, "http://elsewhere:8000", None, None)


def test_outside_development_an_operator_has_to_be_given(tmp_path: Path) -> None:
    with running(tmp_path, operator=None) as data, pytest.raises(CommandError, match="WAYBILL_OPERATOR_EMAIL"):
        find_target(data, None, None, None)


def test_half_an_operator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="give both"):
        find_target(tmp_path, None, "a@b.example", None)


def test_plain_progress_is_a_line_at_the_end_and_now_and_then() -> None:
    seconds = 0.0
    written: list[str] = []
    advance = Lines(written.append, clock=lambda: seconds).phase("orders", 2000)
    advance(500)
    assert written == []
    seconds = 10.0
    advance(500)
    advance(500)
    advance(500)
    assert written == ["orders: 1,000 of 2,000\n", "orders: 2,000 of 2,000\n"]
