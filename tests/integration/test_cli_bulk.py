"""`waybill outbox bulk`: preview, start, follow and cancel bulk actions."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.database import open_database
from services.settings import Settings
from tests.concurrency.bulk import run_all
from tests.processes import ROOT, environment_of, running_worker, wait_until
from tests.roles import superuser_of

pytestmark = pytest.mark.usefixtures("_settings_of_commands")

REASON = ("--reason", "constraint dropped")


@pytest.fixture
def database(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Three dead letters of one kind, and one of another."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint)"
            " SELECT nextval('outbox_position_seq'), gen_random_uuid(), 'order/' || n, 'order.placed', 5,"
            " E'Traceback\\nValueError: no ' || n, CASE WHEN n < 4 THEN 'abc' ELSE 'other' END"
            " FROM generate_series(1, 4) AS n"
        )
        yield connection


def run(*arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["outbox", "bulk", *arguments], input=answer)
    assert result.exit_code == code, result.output
    return result


def read(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def work(settings: Settings) -> None:
    """What a worker does."""

    async def chunks() -> None:
        async with open_database(settings, "test") as database:
            await run_all(database)

    asyncio.run(chunks())


def count(database: psycopg.Connection[Any], what: str) -> int:
    found = database.execute(f"SELECT count(*) FROM {what}").fetchone()
    assert found is not None
    return int(found[0])


def test_a_dry_run_shows_how_many_match_and_changes_nothing(database: psycopg.Connection[Any]) -> None:
    said = run("replay", "--fingerprint", "abc", "--dry-run").output
    assert "Would replay 3 events, the first:" in said
    assert "ValueError: no 2" in said
    plan = read("replay", "--all", "--dry-run")
    assert plan["total"] == {"value": 4, "precision": "exact"}
    assert len(plan["sample"]) == 4
    assert count(database, "bulk_actions") == 0


def test_an_action_is_started_after_a_question_and_followed(
    database: psycopg.Connection[Any], settings: Settings
) -> None:
    refused = run("replay", "--fingerprint", "abc", *REASON, code=1, answer="n\n")
    assert "replay 3 events?" in refused.output
    assert count(database, "bulk_actions") == 0
    started = run("replay", "--fingerprint", "abc", *REASON, "--actor", "somebody", answer="y\n").output
    (one,) = read("list")["data"]
    assert f"waybill outbox bulk wait {one['id']}" in started
    assert (one["state"], one["actor"], one["filter"]) == ("waiting", "somebody", {"fingerprint": "abc"})
    assert "replay: waiting, 0 done, 0 failed, 0 skipped, of 3 events." in run("show", one["id"]).output
    work(settings)
    assert run("wait", one["id"]).stdout == "replay: finished, 3 done, 0 failed, 0 skipped.\n"
    assert count(database, "dead_letters") == 1
    assert "fingerprint=abc" in run("list").output
    assert "already finished" in run("cancel", one["id"], code=1).output


def test_a_cancelled_action_stays_where_it_is_and_waiting_for_it_exits_with_1(
    database: psycopg.Connection[Any], settings: Settings
) -> None:
    one = read("discard", "--type", "order.placed", "--yes", *REASON)
    assert "discard: cancelled, 0 done" in run("cancel", one["id"], "--reason", "wrong type").output
    work(settings)
    assert count(database, "dead_letters") == 4
    assert read("wait", one["id"], code=1)["cancel_reason"] == "wrong type"
    assert read("list", "--state", "running")["data"] == []


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay", *REASON, "--yes"], "give a filter, or --all"),
        (["replay", "--fingerprint", "none", *REASON, "--yes"], "no event matches"),
        (["replay", "--fingerprint", "abc", "--yes"], "requires --reason"),
        (["retry-now", "--waits", "behind", *REASON, "--yes"], "does not fit"),
        (["bury", "--all", *REASON, "--yes"], "no event matches"),
        (["show", str(uuid4())], "there is no bulk action"),
        (["wait", str(uuid4())], "there is no bulk action"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], said: str) -> None:
    assert said in run(*arguments, code=1).output


def test_ctrl_c_leaves_the_action_running_and_says_so(
    database: psycopg.Connection[Any], settings: Settings, tmp_path: Path
) -> None:
    command = ["outbox", "bulk", "replay", "--fingerprint", "abc", "--yes", "--wait", *REASON]
    following = subprocess.Popen(
        [sys.executable, "-m", "services.cli", *command],
        cwd=ROOT,
        env=environment_of(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert following.stdout is not None
    assert "Ctrl-C leaves it running" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    said, _ = following.communicate(timeout=30)
    assert following.returncode == 130, said
    assert "continues without this command" in said
    assert count(database, "dead_letters") == 4
    with running_worker(settings, tmp_path / "worker.log"):
        wait_until(lambda: count(database, "bulk_actions WHERE state = 'finished' AND done = 3") == 1, "its end")
