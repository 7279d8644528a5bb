"""`waybill demo`: its options, and where it makes no failures."""

import asyncio
from pathlib import Path

import httpx2
import pytest
import typer
from typer.testing import CliRunner

from services.cli.client import Login, Patience, Service, Target
from services.cli.console import CommandError
from services.cli.facts import Facts
from services.cli.main import app
from services.local.demo import failures, traffic
from services.local.demo.command import seconds_of, share_of
from services.local.demo.shop import Person, Seller, Shop, ShopKeeper


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


async def test_requests_that_wait_for_a_limit_do_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_PATIENCE", 0.2)

    def limited(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/token":
            return httpx2.Response(200, json={"access_token": "token"})
        return httpx2.Response(429, headers={"Retry-After": "600"}, json={"code": "rate_limited"})

    people = [Person(Login(f"{name}@demo.waybill.example", "secret"), number) for number, name in enumerate("ab")]
    seller = Seller(Login("s@demo.waybill.example", "secret"), 3, products=[1, 2, 3], dear=4, sold_out=5)
    target = Target("http://service", Login("o@demo.waybill.example", "secret"))
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(limited), base_url=target.url) as http:
        service = Service(http, Patience(5.0))
        running = traffic.Traffic(service, ShopKeeper(service, target), Shop([seller], people), rate=100, fails=0.0)
        await running.run(asyncio.Event(), 0.5)
    assert running.done.total == 0
    assert running.done.limited == running.done.given_up > 0
