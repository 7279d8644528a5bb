"""Revision ids: a number for the order, and letters that distinguish two branches, such as `0015kfmw`.

The letters are random, so that two branches can each add a step after 0014: Alembic then sees two heads instead of two
files with one id. Released steps up to 0014 have no letters.
"""

import ast
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from alembic.script.revision import Revision

ID = re.compile(r"(?P<number>\d{4})(?P<letters>[a-z]{4})?")
_ALEMBICS_OWN = re.compile(r"[0-9a-f]{12}")
"""What `alembic.util.rev_id()` makes; any other id was given with `--rev-id`."""
_LETTERS = "bcdfghjkmnpqrstvwxyz"
"""Without vowels, so that they spell no words, and without l, which looks like 1."""

FIX = 'make renumber FILE="FILE..."'
"""The command that every fault names."""


def number_new_files(script: ScriptDirectory) -> None:
    """Let `script` give each file that it writes the next number. Alembic's own ids are random, and have no order.

    An id that was given with `--rev-id` is kept. Alembic has a hook for the ids of `revision`, but none for `merge`.
    """
    generate = script.generate_revision

    def numbered(revid: str, message: str | None, head: Any = None, **options: Any) -> Any:
        if _ALEMBICS_OWN.fullmatch(revid):
            parents = [parent for parent in script.get_revisions(head or "head") if parent is not None]
            revid = f"{1 + max((depth(script, parent) for parent in parents), default=0):04d}{new_letters()}"
        return generate(revid, message, head=head, **options)

    script.generate_revision = numbered  # type: ignore[assignment, method-assign]


def depth(script: ScriptDirectory, step: Revision) -> int:
    """The number in a step's id, or, if it has none, the number of steps up to it."""
    if found := ID.fullmatch(step.revision):
        return int(found["number"])
    parents = script.get_revisions(step._all_down_revisions)
    return 1 + max((depth(script, parent) for parent in parents if parent is not None), default=0)


def new_letters() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(4))


@dataclass(frozen=True, slots=True)
class Step:
    """A file of the history, read without importing it."""

    path: Path
    id: str
    parents: tuple[str, ...]

    @property
    def number(self) -> int:
        """Zero if the id has none."""
        found = ID.fullmatch(self.id)
        return int(found["number"]) if found else 0


def read_steps(folder: Path) -> list[Step]:
    """The steps in `folder`, ordered by the name of their file. Raises `ValueError` if a file has no revision."""
    return [read_step(path) for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


def read_step(path: Path) -> Step:
    """The step in a file. Raises `ValueError` if it has no revision."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case _:
                continue
        if name in ("revision", "down_revision"):
            found[name] = ast.literal_eval(value)
    if not isinstance(found.get("revision"), str):
        raise ValueError(f"{path} is not a migration: it does not say `revision = ...`")
    parents = found.get("down_revision") or ()
    return Step(path, found["revision"], (parents,) if isinstance(parents, str) else tuple(parents))


def faults(folder: Path) -> list[str]:
    """What is wrong with the history in `folder`, one line each, with what to do about it."""
    steps = read_steps(folder)
    of = {step.id: step for step in steps}
    found = duplicates(folder)
    for step in steps:
        if unknown := [parent for parent in step.parents if parent not in of]:
            found.append(f"{step.path.name} comes after {', '.join(unknown)}, which does not exist: {FIX}")
        elif step.number != 1 + max((of[parent].number for parent in step.parents), default=0):
            after = " and ".join(step.parents) or "nothing"
            found.append(f"{step.path.name} has the id {step.id}, but comes after {after}: {FIX}")
        if not step.path.name.startswith(f"{step.id}_"):
            found.append(f"{step.path.name} is not named after its id {step.id}: {FIX}")
    if not found and len(heads := _heads(steps)) > 1:
        found.append(
            f"{_names(heads)} are both newest: move the one that is not released to the end ({FIX}), or, if databases "
            'have run both, join them: alembic merge heads -m "TITLE"'
        )
    return found


def duplicates(folder: Path) -> list[str]:
    """Ids that several files have: Alembic would run only one of them."""
    of: dict[str, list[Step]] = {}
    for step in read_steps(folder):
        of.setdefault(step.id, []).append(step)
    return [
        f"{_names(same)} have the same id {step_id}; move the newer one to the end: {FIX}"
        for step_id, same in of.items()
        if len(same) > 1
    ]


def move_to_the_end(folder: Path, files: Sequence[Path]) -> list[tuple[Step, Step]]:
    """Give `files` the next numbers, one after another, after all other steps. Their letters stay the same.

    Returns each step as it was and as it is. Raises `ValueError` if a file is not in `folder`, or if the others do not
    have one newest step.
    """
    chosen = {file.resolve() for file in files}
    steps = {step.path.resolve(): step for step in read_steps(folder)}
    if strangers := chosen - steps.keys():
        raise ValueError(f"not a migration in {folder}: {', '.join(sorted(path.name for path in strangers))}")
    others = [step for path, step in steps.items() if path not in chosen]
    heads = _heads(others)
    if len(heads) > 1:
        raise ValueError(f"{_names(heads)} are both newest; name every file that has to move")
    moved = []
    last = heads[0] if heads else None
    for file in files:
        before = steps[file.resolve()]
        last = _after(before, last)
        moved.append((before, last))
    return moved


def _after(step: Step, last: Step | None) -> Step:
    """Rewrite the file of a step so that it comes after `last`."""
    old = ID.fullmatch(step.id)
    letters = new_letters() if old is None else old["letters"] or ""
    number = 1 + (last.number if last else 0)
    new_id, parent = f"{number:04d}{letters}", last.id if last else None
    named = step.path.name.startswith(f"{step.id}_")
    slug = step.path.name.removeprefix(f"{step.id}_") if named else re.sub(r"^\d\w*?_", "", step.path.name)
    path = step.path.with_name(f"{new_id}_{slug}")
    text = step.path.read_text()
    for pattern, line in (
        (r"^Revision ID: .*$", f"Revision ID: {new_id}"),
        (r"^Revises:.*$", f"Revises: {parent or ''}".rstrip()),
        (r"^(revision\b[^=\n]*= ).*$", rf'\g<1>"{new_id}"'),
        (r"^(down_revision\b[^=\n]*= ).*$", rf'\g<1>"{parent}"' if parent else r"\g<1>None"),
    ):
        text = re.sub(pattern, line, text, count=1, flags=re.MULTILINE)
    step.path.write_text(text)
    step.path.rename(path)
    return read_step(path)


def _heads(steps: Sequence[Step]) -> list[Step]:
    below = {parent for step in steps for parent in step.parents}
    return [step for step in steps if step.id not in below]


def _names(steps: Sequence[Step]) -> str:
    return " and ".join(step.path.name for step in steps)
