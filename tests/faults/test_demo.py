"""The real `waybill demo` against a real `waybill up`: traffic, failures to look at, and a clean end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.started import Up, environment_without_settings, up, wait_for


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("demo")
    # So that an event that fails is soon a dead letter.
    (folder / ".env").write_text("WAYBILL_OUTBOX_MAX_ATTEMPTS=2\nWAYBILL_OUTBOX_RETRY_BASE=0.1\n")
    with up(folder, data=".waybill") as started:
        yield started


def read(running: Up, *arguments: str) -> Any:
    ran = running.command(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def statuses(running: Up, condition: str = "true") -> set[str]:
    with psycopg.connect(running.facts().database_url) as connection:
        return {row[0] for row in connection.execute(f"SELECT DISTINCT status FROM orders WHERE {condition}")}


def test_it_sends_orders_refusals_returns_and_transfers(running: Up) -> None:
    done = read(running, "demo", "--rate", "40", "--for", "15s")
    assert {"orders", "cancellations", "shipments", "returns", "transfers"} <= done["requests"].keys()
    assert done["refused"]["insufficient_credits"] > 0
    assert "orders that will fail" not in done["requests"]
    wait_for(lambda: read(running, "outbox", "status")["waiting"] == 0, "the workers")
    assert {"confirmed", "fulfilled", "cancelled", "rejected"} <= statuses(running)
    assert running.command("ledger", "audit").returncode == 0
    # A second run signs in as the same users.
    assert read(running, "demo", "--rate", "20", "--for", "1s")["requests"]["orders"] > 0


def test_failures_become_dead_letters_of_several_kinds_that_succeed_once_the_cause_is_removed(running: Up) -> None:
    failing = read(running, "demo", "--rate", "30", "--for", "10s", "--fail", "40%")["requests"][
        "orders that will fail"
    ]
    wait_for(lambda: read(running, "outbox", "status")["dead_letters"] == failing, "the dead letters")
    groups = read(running, "outbox", "dead-letters", "groups")["data"]
    assert sum(group["letters"] for group in groups) == failing
    assert len(groups) == 3
    assert statuses(running, "reference LIKE 'demo-fails-%'") == {"pending"}
    assert read(running, "status")["well"]

    repaired = running.command("demo", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    replayed = running.command("outbox", "replay", "--type", "order.placed", "--reason", "repaired", "--yes")
    assert replayed.returncode == 0, replayed.stderr
    wait_for(lambda: statuses(running, "reference LIKE 'demo-fails-%'") == {"confirmed"}, "the replayed orders")
    assert running.command("ledger", "audit").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_and_prints_what_was_done(running: Up, tmp_path: Path, number: int) -> None:
    said = tmp_path / "said.txt"
    with (
        said.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "services.cli", "demo", "--rate", "30"],
            cwd=running.folder,
            env=environment_without_settings(),
            stdout=output,
            stderr=output,
        ) as demo,
    ):
        wait_for(lambda: "refused" in said.read_text(), "the first line of progress", 60)
        demo.send_signal(number)
        assert demo.wait(30) == 0
    assert "Traceback" not in said.read_text()
    assert "Sent " in said.read_text().split("Ending ...")[1]
