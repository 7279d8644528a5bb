"""The list of commands, which is shown without loading them."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.cli import main
from services.cli.main import COMMANDS, app, load


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_be_loaded_and_says_what_it_does(name: str) -> None:
    assert load(name).help
    assert COMMANDS[name].summary.endswith(".")


def test_help_lists_the_commands_but_not_the_hidden_ones() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    listed = [name for name in COMMANDS if f"│ {name} " in shown]
    assert listed == [name for name in COMMANDS if name not in ("replay", "create-operator")]


def test_help_loads_no_domain_no_database_and_no_server() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from services.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(*sorted(name for name in sys.modules))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("services.")}
    assert ours == {"services.acting", "services.cli", "services.cli.console", "services.cli.main", "services.errors"}
    assert not {"sqlalchemy", "fastapi", "uvicorn", "pydantic_settings"} & set(loaded)


def test_a_mistyped_command_is_answered_with_the_nearest_one() -> None:
    result = CliRunner().invoke(app, ["migrat"])
    assert result.exit_code == 2
    assert "Did you mean 'migrate'?" in result.output


def test_an_installation_without_the_local_servers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="services.local")

    monkeypatch.setattr(main, "import_module", missing)
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert "`waybill up` is for development" in result.output
    assert "Traceback" not in result.output
