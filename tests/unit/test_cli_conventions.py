"""What all commands have in common: options, and exit codes that mean the same everywhere."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.main import COMMANDS, app, load
from tests.processes import ROOT

OLD_NAMES = {"create-operator", "replay"}

PROCESSES = {"up", "api", "worker"}
"""They run until they are stopped."""

SHOW = {
    "audit-log",
    "doctor",
    "events tail",
    "jobs list",
    "ledger audit",
    "orders find",
    "orders show",
    "orders-by-day",
    "outbox bulk list",
    "outbox bulk show",
    "outbox bulk wait",
    "outbox consumers list",
    "outbox dead-letters groups",
    "outbox dead-letters list",
    "outbox dead-letters show",
    "outbox deferred",
    "outbox status",
    "outbox types",
    "outbox waiting",
    "outbox why",
    "status",
    "top",
    "users list",
    "users show",
    "workers check",
    "workers list",
}
"""They print data, and take --json."""

CHANGE = {
    "jobs pause",
    "jobs resume",
    "jobs run",
    "outbox bulk bury",
    "outbox bulk discard",
    "outbox bulk replay",
    "outbox bulk retry-now",
    "outbox bury",
    "outbox cancel",
    "outbox consumers delete",
    "outbox consumers pause",
    "outbox consumers reset",
    "outbox consumers resume",
    "outbox discard",
    "outbox limit",
    "outbox pause",
    "outbox replay",
    "outbox resume",
    "outbox retry-now",
    "users erase",
    "users reset-totp",
    "users set-role",
    "workers ask",
}
"""They change something, and take --dry-run."""

CHANGE_WITHOUT_DRY_RUN = {
    "clean-data": "the folder shows what is in it",
    "demo": "--for tries it out for a second",
    "database-roles": "it only creates what is missing, in transactions of several databases",
    "down": "`waybill status` shows what it would end",
    "import-retail": "it places orders through the API; --limit tries out some",
    "migrate": "a revision may not be able to run in a transaction that is rolled back",
    "outbox bulk cancel": "`waybill outbox bulk show` shows what it would end",
    "outbox partitions": "it only creates what is missing",
    "outbox rebase": "it would take as long as doing it",
    "reports rebuild": "it would take as long as doing it",
    "users create": "there is nothing to see beforehand",
    "users export": "it only reads, and writes a file",
}

PROGRESS = {"demo", "import-retail", "outbox bulk wait", "reports rebuild"}
"""They take long, and show how far they are."""

ARGUMENTS = {
    "outbox bulk show": "00000000-0000-0000-0000-000000000000",
    "outbox bulk wait": "00000000-0000-0000-0000-000000000000",
    "outbox why": "order/1",
}
"""An argument of the right form, where a number is not."""


def leaves() -> Iterator[tuple[str, Any]]:
    def below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for sub, one in command.commands.items():
            yield from below(one, f"{name} {sub}")

    for name in COMMANDS.keys() - OLD_NAMES:
        yield from below(load(name), name)


LEAVES = dict(leaves())


def options(name: str) -> set[str]:
    return {option for parameter in LEAVES[name].params for option in parameter.opts}


def test_every_command_is_of_one_kind() -> None:
    kinds = [PROCESSES, SHOW, CHANGE, CHANGE_WITHOUT_DRY_RUN.keys()]
    assert sorted(LEAVES) == sorted(name for kind in kinds for name in kind)


@pytest.mark.parametrize("name", sorted(SHOW))
def test_a_command_that_prints_data_prints_json_too(name: str) -> None:
    assert "--json" in options(name)


@pytest.mark.parametrize("name", sorted(CHANGE))
def test_a_command_that_changes_something_has_a_dry_run(name: str) -> None:
    assert "--dry-run" in options(name)


@pytest.mark.parametrize("name", sorted(PROGRESS))
def test_a_command_that_takes_long_shows_its_progress(name: str) -> None:
    text = inspect.getsource(sys.modules[inspect.unwrap(LEAVES[name].callback).__module__])
    assert "open_display" in text or "_SECONDS_BETWEEN_LINES" in text


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_wrong_usage_ends_with_2(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--no-such-option"])
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("name", sorted(SHOW - {"ledger audit"}))
def test_what_cannot_be_read_ends_with_1_and_prints_nothing_to_standard_output(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    required = [parameter for parameter in LEAVES[name].params if parameter.required]
    arguments = [ARGUMENTS.get(name, "1") for _ in required]
    result = CliRunner().invoke(app, [*name.split(), *arguments, "--data-dir", "nowhere"])
    assert result.exit_code == 1
    assert (result.stdout, "`waybill up` is not running in" in result.stderr) == ("", True)


def test_an_audit_that_cannot_be_done_ends_with_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WAYBILL_DATABASE_URL", "WAYBILL_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, ["ledger", "audit"])
    assert (result.exit_code, result.stdout) == (3, "")


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/command-line.md").read_text()
    documented = set(re.findall(r"`waybill ([a-z][a-z -]*?)(?= [A-Z<(-]|`)", page))
    assert {name for name in LEAVES if name not in documented} == set()


def test_completion_offers_the_names_of_commands_and_options() -> None:
    def completed(typed: str) -> list[str]:
        words = {
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split(" ")) - 1),
            "_WAYBILL_COMPLETE": "complete_bash",
        }
        return CliRunner().invoke(app, [], env=words, prog_name="waybill").stdout.split()

    assert completed("waybill wor") == ["worker", "workers"]
    assert completed("waybill outbox dead-letters s") == ["show"]
    assert "--data-dir" in completed("waybill users list --")
