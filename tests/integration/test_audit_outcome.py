"""The outcome of an audit: the command prints it and sets the exit code, the scheduled job logs and stores it."""

import asyncio
import json
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.database import Database
from services.settings import Settings, get_settings
from services.unit_of_work import UnitOfWork
from tests.api.audited import corrupt
from tests.factories import make_user
from tests.logs import capture_logs
from worker.context import open_worker
from worker.jobs.audit import audit_ledger

POSTED = "UPDATE accounts SET posted = posted + 1 WHERE user_id = :id"


async def run(*arguments: str) -> Result:
    """Run `waybill ledger audit ARGUMENTS`, which uses its own event loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, ["ledger", "audit", *arguments])


async def run_job(settings: Settings) -> list[Any]:
    """Run the scheduled job in a worker; return what it logged."""
    async with open_worker(settings) as worker:
        with capture_logs() as logged:
            await audit_ledger({"worker": worker})
    return [line for line in logged if line["event"].startswith("ledger audit")]


@pytest.mark.usefixtures("_settings_of_commands")
async def test_the_command_says_that_everything_agrees_and_exits_0(database: Database) -> None:
    await make_user(database, credits="12.50")
    ran = await run()
    assert ran.exit_code == 0, ran.output
    # Two accounts, one transfer and its two entries.
    assert ran.output.startswith("Checked 5 rows in ")
    assert ran.output.endswith(" s: everything agrees.\n")


@pytest.mark.usefixtures("_settings_of_commands")
async def test_the_command_prints_each_difference_and_exits_1(database: Database) -> None:
    users = [await make_user(database, credits="12.50") for _ in range(2)]
    for user in users:
        await corrupt(database, POSTED, id=user.id)
    ran = await run()
    assert ran.exit_code == 1
    *lines, summary = ran.output.splitlines()
    for line, user in zip(sorted(lines), users, strict=True):
        async with UnitOfWork(database.read) as uow:
            account = await uow.ledger.account_of(user.id)
        assert account is not None
        assert line == (
            f"account_posted: account {account.id} has 13.50 posted, but its entries sum to 12.50 (expected 12.50)"
        )
    assert summary.endswith(": 2 differences.")


@pytest.mark.usefixtures("_settings_of_commands")
@pytest.mark.parametrize("wrong", [0, 1, 2])
async def test_the_command_prints_one_json_object(database: Database, wrong: int) -> None:
    for _ in range(wrong):
        await corrupt(database, POSTED, id=(await make_user(database)).id)
    ran = await run("--json")
    assert ran.exit_code == min(wrong, 1)
    printed = json.loads(ran.output)
    assert printed.keys() == {"differences", "started_at", "seconds", "rows_checked", "number_of_differences"}
    assert len(printed["differences"]) == printed["number_of_differences"] == wrong
    for difference in printed["differences"]:
        assert difference.keys() == {"kind", "subject", "expected", "found", "message"}
        assert (difference["kind"], difference["expected"], difference["found"]) == ("account_posted", "0.00", "1.00")
        assert difference["subject"].keys() == {"account_id"}


@pytest.mark.usefixtures("_settings_of_commands")
async def test_an_audit_that_cannot_be_done_exits_3_and_says_why(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_AUDIT_TIME_LIMIT", "0.5")
    get_settings.cache_clear()
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        slow = await run()
    monkeypatch.setenv("WAYBILL_AUDIT_TIME_LIMIT", "-1")
    get_settings.cache_clear()
    invalid = await run()
    monkeypatch.delenv("WAYBILL_AUDIT_TIME_LIMIT")
    monkeypatch.setenv("WAYBILL_DATABASE_URL", "postgresql://somebody:hidden@127.0.0.1:1/nowhere")
    get_settings.cache_clear()
    away = await run()

    assert [ran.exit_code for ran in (slow, invalid, away)] == [3, 3, 3]
    assert "stopped after 0.5 s; raise WAYBILL_AUDIT_TIME_LIMIT" in slow.output
    assert "the settings are not valid:\n  WAYBILL_AUDIT_TIME_LIMIT: " in invalid.output
    assert "cannot connect to the database at postgresql" in away.output
    assert "127.0.0.1:1/nowhere: " in away.output
    assert "hidden" not in away.output


@pytest.mark.usefixtures("_settings_of_commands")
async def test_an_audit_of_a_database_without_tables_says_to_migrate(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_DATABASE_URL", empty_database_url)
    get_settings.cache_clear()
    refused = await run()
    assert refused.exit_code == 3
    assert "run `waybill migrate` first" in refused.output


async def test_the_job_logs_and_keeps_what_it_found(settings: Settings, database: Database) -> None:
    users = [await make_user(database, credits="1.00") for _ in range(7)]
    (line,) = await run_job(settings)
    assert (line["event"], line["level"], line["differences"]) == ("ledger audit", "info", 0)
    async with UnitOfWork(database.read) as uow:
        first = await uow.audits.latest()
    assert first is not None
    assert (first.differences, first.sample, first.rows_checked) == (0, [], 1 + 7 * 4)

    for user in users:
        await corrupt(database, POSTED, id=user.id)
    (line,) = await run_job(settings)

    assert (line["level"], line["differences"], line["kinds"]) == ("error", 7, {"account_posted": 7})
    assert len(line["sample"]) == 5
    assert all("has 2.00 posted" in message for message in line["sample"])
    async with UnitOfWork(database.read) as uow:
        kept = await uow.audits.latest()
    assert kept is not None
    assert kept.started_at > first.started_at
    assert (kept.differences, len(kept.sample), kept.sample[0]["kind"]) == (7, 5, "account_posted")
    assert kept.seconds == pytest.approx(line["seconds"], abs=0.001)


async def test_a_job_that_does_not_finish_logs_it_and_keeps_nothing(
    settings: Settings, database: Database, database_url: str
) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE")
        (line,) = await run_job(settings.model_copy(update={"audit_time_limit": 0.5}))
    assert (line["event"], line["level"]) == ("ledger audit not finished", "error")
    assert "WAYBILL_AUDIT_TIME_LIMIT" in line["reason"]
    async with UnitOfWork(database.read) as uow:
        assert await uow.audits.latest() is None
