"""Commands beside a real `waybill up`: they find it, `status` says how it is, and `down` ends it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.facts import read_facts
from tests.started import Up, all_of, environment_without_settings, lives, up, wait_for


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("beside"), data=".waybill") as started:
        yield started


def test_a_command_in_the_same_folder_uses_its_database(running: Up) -> None:
    listed = running.command("users", "set-role", "second-buyer@waybill.example", "seller")
    assert listed.returncode == 0, listed.stderr
    assert listed.stderr == f"Using the `waybill up` in {running.data} (process {running.process.pid}).\n"
    back = running.command("users", "set-role", "second-buyer@waybill.example", "customer", "--data-dir", ".waybill")
    assert "before: seller" in back.stdout


def test_status_shows_processes_addresses_and_versions_but_no_password(running: Up) -> None:
    facts = running.facts()
    shown = running.command("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "is running in" in shown.stdout
    status = json.loads(running.command("status", "--json").stdout)
    assert (status["state"], status["well"], status["complaints"]) == ("running", True, [])
    pids = {one["name"]: one["pid"] for one in status["processes"]}
    assert pids == {
        "supervisor": running.process.pid,
        "PostgreSQL": facts.pids.postgres,
        "Redis": facts.pids.redis,
        "API": facts.pids.api,
        "worker 1": facts.pids.workers[0],
    }
    assert status["addresses"]["API"] == facts.api_url
    assert (status["waiting"], status["dead_letters"], status["books_balanced"]) == (0, 0, True)
    assert status["versions"]["waybill"] == status["versions"]["workers"][0]
    for address in (facts.database_url, facts.redis_url):
        password = address.split(":")[2].split("@")[0]
        assert password not in shown.stdout + str(status)


def test_status_is_not_well_while_the_api_is_suspended(running: Up) -> None:
    api = running.facts().pids.api
    assert api is not None
    os.kill(api, signal.SIGSTOP)
    try:
        hanging = running.command("status")
    finally:
        os.kill(api, signal.SIGCONT)
    assert hanging.returncode == 1
    assert "the API does not answer" in hanging.stderr
    assert "but not everything is well" in hanging.stdout


def test_a_worker_beside_it_takes_part_without_the_owner_of_the_tables(running: Up) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "services.cli", "worker"],
        cwd=running.folder,
        env=environment_without_settings(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as added:
        try:

            def beats() -> bool:
                listed = json.loads(running.command("workers", "list", "--json").stdout)
                return added.pid in [one["pid"] for one in listed]

            wait_for(beats, "the heartbeat of the added worker", 60)
            assert "WAYBILL_MIGRATION_" not in Path(f"/proc/{added.pid}/environ").read_text()
        finally:
            added.terminate()
            added.wait(30)


def test_down_ends_it_cleanly_and_a_second_one_finds_nothing(tmp_path: Path) -> None:
    with up(tmp_path) as started:
        facts = started.facts()
        ended = started.command("down", "--data-dir", "data")
        assert ended.returncode == 0, ended.stderr
        assert started.process.wait(10) == 0
        assert not any(lives(pid) for pid in all_of(facts.pids))
        assert (started.data / "postgres" / "server.log").read_text().strip().endswith("database system is shut down")
        again = started.command("down", "--data-dir", "data")
        assert (again.returncode, again.stderr) == (
            1,
            f"waybill: `waybill up` is not running in {started.data}\n",
        )
        gone = started.command("status", "--data-dir", "data", "--json")
        assert (gone.returncode, json.loads(gone.stdout)["state"]) == (1, "not running")


def test_down_leaves_a_process_alone_that_has_the_id_of_one_that_was_killed(tmp_path: Path) -> None:
    with up(tmp_path) as started:
        started.process.kill()
        started.process.wait()
        facts = read_facts(started.data)
        assert facts is not None
        with subprocess.Popen(["sleep", "600"]) as other:
            try:
                # As if the system had given the id to another process.
                facts.pids.supervisor = other.pid
                facts.write()
                (started.data / "lock").write_text(f"{other.pid}\n")
                assert started.command("down", "--data-dir", "data").returncode == 1
                assert started.command("status", "--data-dir", "data").returncode == 1
                assert other.poll() is None
            finally:
                other.kill()
