"""`waybill top`: once, line by line without a terminal, and live in one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.settings import Settings
from tests.processes import ROOT, environment_of, running, wait_until
from tests.roles import superuser_of

TOP = ["-m", "services.cli", "top", "--every", "0.3"]


@pytest.fixture(autouse=True)
def work(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Two events that wait, one of them for a retry, a dead letter, and a worker that is silent."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO outbox (event_id, aggregate, type, waits, available_at, attempts) VALUES"
            " (gen_random_uuid(), 'order/1', 'order.placed', NULL, NULL, 0),"
            " (gen_random_uuid(), 'order/2', 'order.placed', 'retry', now() + interval '1 hour', 1)"
        )
        connection.execute(
            "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures)"
            " VALUES (-1, gen_random_uuid(), 'order/3', 'order.placed', 8, 'ValueError: no', 'abc', '[]')"
        )
        connection.execute(
            "INSERT INTO workers VALUES (gen_random_uuid(), 'here', 7, now(), now() - interval '1 hour', now(),"
            """ '{"time_limit": 30, "types": [], "rates": {"processed": 2.5}, "processed": 9, "retried": 1}')"""
        )
        yield connection


@pytest.mark.usefixtures("_settings_of_commands")
def test_one_look_shows_what_waits_and_why_and_who_works() -> None:
    ran = CliRunner().invoke(app, ["top", "--once", "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["waiting"], found["retrying"], found["dead_letters"]) == (2, 1, 1)
    assert (found["written_per_second"], found["processed_per_second"]) == (0.0, 2.5)
    (kind,) = found["types"]
    assert (kind["type"], kind["ready"], kind["waiting"], kind["dead_letters"]) == ("order.placed", 1, {"retry": 1}, 1)
    (worker,) = found["workers"]
    assert (worker["pid"], worker["processed"], worker["failed"]) == (7, 9, 1)
    assert worker["complaint"].startswith("no heartbeat for")
    shown = CliRunner().invoke(app, ["top", "--once"]).stdout
    assert "1 worker, 1 unwell" in shown
    assert "retry 1" in shown


def test_without_a_terminal_each_look_is_a_line(settings: Settings, tmp_path: Path) -> None:
    with running(TOP, settings, tmp_path / "top.log") as top:
        wait_until(lambda: len(top.said().splitlines()) >= 3, "three looks")
        assert top.terminate(30) == 0
    assert all("waiting 2  retrying 1" in line for line in top.said().splitlines())
    with running([*TOP, "--json"], settings, tmp_path / "top.json") as top:
        wait_until(lambda: len(top.said().splitlines()) >= 2, "two looks")
        assert top.terminate(30) == 0
    assert [json.loads(line)["waiting"] for line in top.said().splitlines()][:2] == [2, 2]


def test_a_database_that_goes_away_is_told_and_waited_for(
    settings: Settings, tmp_path: Path, work: psycopg.Connection[Any]
) -> None:
    with running(TOP, settings, tmp_path / "top.log") as top:
        wait_until(lambda: "waiting 2" in top.said(), "a look")
        work.execute("ALTER TABLE dead_letters RENAME TO gone")
        wait_until(lambda: "the database cannot be read" in top.said(), "the complaint")
        work.execute("ALTER TABLE gone RENAME TO dead_letters")
        looks = top.said().count("waiting 2")
        wait_until(lambda: top.said().count("waiting 2") > looks, "the next look")


def test_in_a_terminal_it_fills_the_screen_and_leaves_it_as_it_was(settings: Settings) -> None:
    ours, theirs = os.openpty()
    environment = {**environment_of(settings), "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    with subprocess.Popen([sys.executable, *TOP], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as top:
        os.close(theirs)
        seen = b""

        def shows() -> bool:
            nonlocal seen
            seen += os.read(ours, 65536)
            return seen.count(b"order.placed") >= 2

        wait_until(shows, "two looks")
        top.send_signal(signal.SIGINT)
        assert top.wait(30) == 0
    while chunk := _rest(ours):
        seen += chunk
    os.close(ours)
    entered, left = b"\x1b[?1049h", b"\x1b[?1049l"
    assert seen.index(entered) < seen.rindex(left)
    assert b"Traceback" not in seen


def _rest(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
