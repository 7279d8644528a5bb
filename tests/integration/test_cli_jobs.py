"""`waybill jobs`, and what `waybill workers check` says about jobs."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings
from tests.roles import superuser_of

WORKER = """
    INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)
    VALUES (gen_random_uuid(), 'here', 1, now(), now(), now(), '{"schedules": ["expire", "audit"]}')
"""
JOBS = """
    INSERT INTO jobs (name, schedule, due_at, runs, failures, failed_in_a_row, ok, error) VALUES
    ('expire', 'each minute, at second 30', now() + interval '20 s', 5, 0, 0, true, NULL),
    ('audit', 'each hour, at minute 40', now() - interval '30 s', 5, 1, 1, false, 'ValueError(''no'')'),
    ('of_old', 'each day, at 00:10 UTC', now() - interval '9 days', 0, 0, 0, NULL, NULL)
"""


@pytest.fixture
def database(settings: Settings, _settings_of_commands: None) -> Iterator[psycopg.Connection[Any]]:
    """A live worker that knows two of three jobs, all of them healthy."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(WORKER)
        connection.execute(JOBS)
        yield connection


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def listed(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(run("jobs", "list", "--json").stdout)
    return next(one for one in found if one["name"] == name)


def test_the_list_shows_when_each_is_due_its_state_and_its_last_run(database: psycopg.Connection[Any]) -> None:
    said = run("jobs", "list").output
    assert "each minute, at second 30" in said
    assert "ValueError('no')" in said
    assert (listed("expire")["state"], listed("expire")["runs"], listed("expire")["ok"]) == ("waiting", 5, True)
    assert 30 <= listed("audit")["late_seconds"] < 60
    # No live worker knows it, so it is not late.
    assert (listed("of_old")["state"], listed("of_old")["late_seconds"]) == ("unknown", 0.0)
    database.execute("UPDATE jobs SET lease_owner = (SELECT id FROM workers), lease_until = now() + interval '1 min'")
    assert "running on here 1" in run("jobs", "list").output
    assert (listed("audit")["state"], listed("audit")["late_seconds"], listed("audit")["pid"]) == ("running", 0.0, 1)


def test_a_run_is_requested_once_and_an_unknown_job_is_refused(database: psycopg.Connection[Any]) -> None:
    assert run("jobs", "run", "expire", "--actor", "ann").output == "expire will run as soon as a worker is free.\n"
    assert listed("expire")["requested_by"] == "ann"
    assert json.loads(run("jobs", "run", "expire", "--json").stdout)["requested_at"] is not None
    for command in ("run", "pause", "resume"):
        assert "there is no job 'nonsense'" in run("jobs", command, "nonsense", code=1).output


def test_a_job_is_paused_with_who_and_why_and_resumed(database: psycopg.Connection[Any]) -> None:
    run("jobs", "pause", "audit", "--actor", "ann", "--reason", "it is too slow")
    assert "by ann: it is too slow" in run("jobs", "list").output
    paused = listed("audit")
    assert (paused["state"], paused["paused_by"], paused["paused_reason"]) == ("paused", "ann", "it is too slow")
    run("jobs", "resume", "audit")
    assert (listed("audit")["state"], listed("audit")["paused_at"]) == ("waiting", None)


def test_the_check_names_a_job_that_is_late_unless_it_is_paused(database: psycopg.Connection[Any]) -> None:
    assert run("workers", "check").output == ""
    database.execute("UPDATE jobs SET due_at = now() - interval '70 s' WHERE name = 'audit'")
    assert "job audit: late by 7" in run("workers", "check", code=1).output
    # With a host, only its workers are checked: the jobs belong to all workers.
    assert run("workers", "check", "--host", "here").output == ""
    run("jobs", "pause", "audit")
    assert run("workers", "check").output == ""


def test_the_check_names_a_job_whose_last_runs_failed(database: psycopg.Connection[Any]) -> None:
    database.execute("UPDATE jobs SET failures = 2, failed_in_a_row = 2 WHERE name = 'audit'")
    said = run("workers", "check", code=1).output
    assert "job audit: its last 2 runs failed: ValueError('no')" in said


def test_the_check_names_late_jobs_when_there_is_no_worker(database: psycopg.Connection[Any]) -> None:
    database.execute("DELETE FROM workers")
    said = run("workers", "check", code=1).output
    assert "no worker" in said
    assert "job of_old: late by" in said
