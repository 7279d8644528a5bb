"""The generic repository is what the product uses: no method without a caller, and no way around it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from services.repository import Repository, SoftDeleteRepository
from services.unit_of_work import UnitOfWork

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("services", "worker") for file in (ROOT / folder).rglob("*.py"))
GENERIC = ROOT / "services" / "repository.py"

ADDS = {"add", "add_all", "delete", "merge", "flush"}
"""What writes objects by hand."""


def methods() -> set[str]:
    """The public methods of the generic repositories."""
    return {name for kind in (Repository, SoftDeleteRepository) for name in vars(kind) if not name.startswith("_")} - {
        "model"
    }


def calls(file: Path) -> Iterator[tuple[str, str]]:
    """Each call of a method in the file: on what, as it is written, and the method."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr


def repositories() -> dict[str, type[object]]:
    """The repositories of the unit of work, by name."""
    found = {
        name: one._kind for base in UnitOfWork.__mro__ for name, one in vars(base).items() if hasattr(one, "_kind")
    }
    assert len(found) > 15
    return found


def test_each_method_of_the_generic_repository_has_a_caller() -> None:
    generic = {name for name, kind in repositories().items() if issubclass(kind, Repository)}
    assert len(generic) >= 6
    used = set()
    for file in FILES:
        if file == GENERIC:
            continue
        for on, method in calls(file):
            own = on == "self" and file.name == "repository.py"
            if own or on.rpartition(".")[2] in generic:
                used.add(method)
    assert methods() - used == set(), "delete what nothing calls"
    assert len(methods()) >= 12


def test_nothing_but_repositories_writes_objects_to_a_session() -> None:
    by_hand = [
        f"{file.relative_to(ROOT)}: {on}.{method}"
        for file in FILES
        for on, method in calls(file)
        if method in ADDS and on.rpartition(".")[2] == "session" and file != GENERIC
    ]
    assert by_hand == [], "use create, update and the like of a repository"
