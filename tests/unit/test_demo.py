"""`waybill demo`: its options, and where it makes no failures."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from services.cli.console import CommandError
from services.cli.facts import Facts
from services.cli.main import app
from services.local.demo import failures
from services.local.demo.command import seconds_of, share_of


@pytest.mark.parametrize(
    ("duration", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("10min", 600), ("2h", 7200), (" 5s ", 5)]
)
def test_durations_have_a_unit_or_are_seconds(duration: str, seconds: float) -> None:
    assert seconds_of(duration) == seconds


@pytest.mark.parametrize("duration", ["", "0", "0s", "-5", "5 d", "s", "1e3"])
def test_what_is_not_a_duration_is_refused(duration: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration"):
        seconds_of(duration)


@pytest.mark.parametrize(("percentage", "share"), [("2%", 0.02), ("2", 0.02), ("0%", 0), ("100%", 1), ("0.5%", 0.005)])
def test_percentages_are_shares(percentage: str, share: float) -> None:
    assert share_of(percentage) == share


@pytest.mark.parametrize("percentage", ["", "%", "101%", "-1%", "two", "2%%"])
def test_what_is_not_a_percentage_is_refused(percentage: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a percentage"):
        share_of(percentage)


@pytest.mark.parametrize("act", [failures.plant, failures.remove])
def test_outside_development_no_failures_are_made(tmp_path: Path, act: object) -> None:
    facts = Facts(
        api_url="http://127.0.0.1:8000",
        docs_url="",
        # It is not even connected to.
        database_url="postgresql://nobody@127.0.0.1:1/nothing",
        redis_url="",
        data_dir=tmp_path,
        environment="production",
    )
    assert callable(act)
    with pytest.raises(CommandError, match="runs in production: failures are made in development only"):
        act(facts)


@pytest.mark.parametrize("options", [["--fail", "2%"], ["--repair"]])
def test_a_service_elsewhere_gets_no_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    operator = ["--operator-email", "a@b.example", "--operator-password", "secret"]
    refused = CliRunner().invoke(app, ["demo", "--url", "http://127.0.0.1:1", *operator, *options])
    assert refused.exit_code == 1
    assert "change the database of a `waybill up` on this machine" in refused.stderr
