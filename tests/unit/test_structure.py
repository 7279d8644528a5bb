"""The structure that CONTRIBUTING.md describes: standard file names, layers, no import cycles."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]

STANDARD = {"__init__", "models", "schemas", "events", "queries", "repository", "service", "routes"}

EXTRA = {
    "credits/approval": {"rules"},
    "credits/ledger": {"rules"},
    "credits/transfers": {"planning"},
    "outbox/control": {"why"},
    "outbox/engine": {"window"},
    "users": {"passwords", "rights"},
    "users/keys": {"secret"},
    "users/totp": {"codes"},
}
"""The one file with a non-standard name that each of these folders may have."""

NOT_DOMAINS = {"api", "cli", "console", "local", "outbox"}


def folders() -> list[str]:
    """Each domain and wing, such as `orders` and `orders/refunds`; the engine's wings, but not its public surface."""
    services = ROOT / "services"
    domains = [folder for folder in services.iterdir() if (folder / "__init__.py").exists()]
    wings = [wing for domain in domains for wing in domain.iterdir() if (wing / "__init__.py").exists()]
    found = [one for one in domains if one.name not in NOT_DOMAINS]
    found += [one for one in wings if one.parent.name not in NOT_DOMAINS - {"outbox"}]
    return sorted(str(one.relative_to(services)) for one in found)


@pytest.mark.parametrize("folder", folders())
def test_a_domain_or_wing_has_only_the_standard_files(folder: str) -> None:
    names = {file.stem for file in (ROOT / "services" / folder).glob("*.py")}
    allowed = STANDARD | EXTRA.get(folder, set())
    assert names <= allowed, f"services/{folder}: {sorted(names - allowed)} is not a standard file name"


def test_every_exception_from_the_standard_names_is_used() -> None:
    files = [ROOT / "services" / folder / f"{name}.py" for folder, names in EXTRA.items() for name in names]
    assert [file for file in files if not file.exists()] == []


def test_every_domain_and_wing_is_a_container_of_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    containers = {name for one in contracts if one.get("exhaustive") for name in one.get("containers", [])}
    dotted = {folder: f"services.{folder.replace('/', '.')}" for folder in folders()}
    missing = [
        name for name in dotted.values() if name not in containers and f"{name.rpartition('.')[0]}.*" not in containers
    ]
    assert missing == [], "add them to the containers of the contract in pyproject.toml"


EDGES = {
    "services/api/groups.py",
    "services/api/transaction.py",
    "services/outbox/engine/service.py",
    "services/outbox/sink.py",
    "services/unit_of_work.py",
}
"""Where units of work are committed: a request's or a group's, a batch's of events or of the log, `background`'s."""


def calls(attribute: str) -> dict[str, set[str]]:
    """The files that call a method of this name, each with what it is called on."""
    found: dict[str, set[str]] = {}
    for top in ("services", "worker"):
        for file in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == attribute:
                    found.setdefault(str(file.relative_to(ROOT)), set()).add(ast.unparse(node.func.value))
    return found


def test_only_the_edges_commit_a_unit_of_work() -> None:
    below = {"services/database.py": {"session", "super()"}, "services/pooler.py": {"connection"}}
    found = calls("commit")
    assert {file: found.pop(file) for file in below} == below, "the driver's and the session's own commits"
    assert found.keys() == EDGES


def test_routes_are_given_their_unit_of_work_and_open_none() -> None:
    opening = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "services").rglob("routes.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("UnitOfWork", "background"))
    }
    # A stream is sent after the request's own unit of work has ended.
    assert opening <= {"services/credits/statement/routes.py"}


@cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("services", "worker", "migrations", cache_dir=None)


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = imports()
    order = TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
    assert len(graph.modules) > 200


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code in which imports can be planted."""
    place = tmp_path_factory.mktemp("house")
    for folder in ("services", "worker", "migrations"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def plant(copy: Path) -> Iterator["Plant"]:
    planting = Plant(copy)
    yield planting
    planting.take_out()


class Plant:
    """Adds lines to files of the copy, and takes them out again."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._before: dict[Path, str | None] = {}

    def __call__(self, file: str, line: str) -> None:
        path = self.place / file
        path.parent.mkdir(exist_ok=True)
        self._before[path] = path.read_text() if path.exists() else None
        path.write_text(f"{self._before[path] or ''}\n{line}\n")

    def take_out(self) -> None:
        for path, before in self._before.items():
            if before is None:
                path.unlink()
            else:
                path.write_text(before)


def test_the_contracts_hold(copy: Path) -> None:
    ran = lint(copy)
    assert ran.returncode == 0, ran.stdout
    assert " 0 broken" in ran.stdout


PLANTED = [
    ("services/orders/processing/repository.py", "from services.orders import service"),
    ("services/orders/processing/repository.py", "from services.unit_of_work import UnitOfWork"),
    ("services/operations/outbox/routes.py", "from services.app import create_app"),
    ("services/operations/outbox/routes.py", "from services.cli.main import app"),
    ("services/orders/returns.py", "from fastapi import APIRouter"),
    ("services/orders/service.py", "from fastapi import HTTPException"),
    ("services/orders/models.py", "from services.orders.repository import OrderRepository"),
    ("services/outbox/engine/service.py", "from services.orders.models import Order"),
    ("services/outbox/engine/service.py", "from services.unit_of_work import UnitOfWork"),
    ("services/returns/__init__.py", ""),
    ("services/sql.py", "from services.users.models import User"),
    ("services/subscriptions.py", "from worker.settings import WorkerSettings"),
    ("services/users/service.py", "from services.subscriptions import SUBSCRIPTIONS"),
    ("services/users/service.py", "from worker.poller import Poller"),
    ("services/cli/jobs.py", "from services.local.up import up"),
]


@pytest.mark.parametrize(("file", "line"), PLANTED, ids=[f"{file}: {line or 'new'}" for file, line in PLANTED])
def test_a_planted_import_breaks_a_contract(plant: Plant, file: str, line: str) -> None:
    plant(file, line)
    ran = lint(plant.place)
    assert ran.returncode == 1, ran.stdout
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert module in ran.stdout or module.rpartition(".")[2] in ran.stdout
    assert "broken" in ran.stdout
