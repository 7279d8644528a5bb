"""A migration states what was true when it was written: it imports nothing from the services, which change later."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from migrations.config import ANALYTICS, alembic_config

PROJECT = Path(__file__).parents[2]
VERSIONS = [
    Path(script.path)
    for section in ("alembic", ANALYTICS)
    for script in ScriptDirectory.from_config(alembic_config(section=section)).walk_revisions()
]
BESIDE_THEM = [PROJECT / "migrations" / name for name in ("batches.py", "column_types.py")]
LIVING = {"services", "worker"}
"""Packages that a migration must not import."""

LOAD = f"""
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LIVING}:
            raise ImportError(f"imports {{name}}")

sys.meta_path.insert(0, Blocked())
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("step", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        print(f"{{path}} {{error}}")
    else:
        assert module.upgrade and module.downgrade
        print("loaded")
"""


def test_every_step_loads_without_the_services() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, *VERSIONS], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60
    )
    assert loaded.stderr == ""
    assert loaded.stdout.splitlines() == ["loaded"] * len(VERSIONS)


@pytest.mark.parametrize("path", [*VERSIONS, *BESIDE_THEM], ids=lambda path: path.stem)
def test_no_step_imports_the_services_while_it_runs(path: Path) -> None:
    """An import inside a function does not run when the module is loaded."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert not {name.partition(".")[0] for name in names} & LIVING
    ours = {name for name in names if name.startswith("migrations")}
    assert ours <= {"migrations", "migrations.batches", "migrations.column_types"}
