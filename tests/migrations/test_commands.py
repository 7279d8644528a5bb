"""Alembic's commands as docs/how-to/migrations.md gives them, in a checkout whose path has a space."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.migrations.schema import read_schema, revision_of

PROJECT = Path(__file__).parents[2]
COPIED = ("alembic.ini", "Makefile", "migrations", "pyproject.toml", ".ci", "services", "worker")
LOCKS = ("requirements-dev.txt", "requirements-embedded.txt")


class Checkout:
    """A copy of this tree, with its virtual environment."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder / "a clone with spaces"
        self.folder.mkdir()
        for name in (*COPIED, *LOCKS):
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, self.folder)
        (self.folder / ".venv").symlink_to(sys.prefix)
        self.versions = self.folder / "migrations" / "versions"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
        # The virtual environment is that of the other checkout, and has its packages installed.
        self.environment["PYTHONPATH"] = str(self.folder)
        if url is not None:
            self.environment["WAYBILL_DATABASE_URL"] = url

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command there; returns what it printed. Fails on another exit code, or if it prints a traceback."""
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stdout
        assert "Traceback" not in ran.stdout
        return ran.stdout

    def alembic(self, *arguments: str, code: int = 0) -> str:
        return self.run(".venv/bin/alembic", *arguments, code=code)

    def make(self, *arguments: str, code: int = 0) -> str:
        # The environment is there, whatever the times of the copied files are.
        return self.run("make", "-o", ".venv/ready", *arguments, code=code)

    def file(self, title: str) -> Path:
        (found,) = self.versions.glob(f"*_{title}.py")
        return found

    def id(self, title: str) -> str:
        return self.file(title).name.partition("_")[0]


def test_the_life_of_a_migration_as_the_page_describes_it(empty_database_url: str, tmp_path: Path) -> None:
    url = empty_database_url
    here = Checkout(tmp_path, url)
    models = here.folder / "services" / "orders" / "models.py"
    base = "    reference: Reference | None = Field(default=None, sa_type=String(64))\n"
    assert base in models.read_text()
    models.write_text(
        models.read_text().replace(base, f"{base}    note: str | None = Field(default=None, max_length=200)\n")
    )

    said = here.make("migration", "NAME=order note")
    name = here.file("order_note").name
    assert f"Wrote migrations/versions/{name}\n" in said
    text = here.file("order_note").read_text()
    assert "op.add_column('orders', sa.Column('note', sa.String(length=200), nullable=True))" in text.replace('"', "'")
    here.make("lint-migrations")

    here.alembic("upgrade", "head")
    new = here.id("order_note")
    before = f"{int(new[:4]) - 1:04d}"
    assert revision_of(url) == [new]
    assert ("orders", "note") in {row[:2] for row in read_schema(url).columns}
    assert "No new upgrade operations detected" in here.alembic("check")
    here.alembic("downgrade", "-1")
    assert revision_of(url)[0].startswith(before)
    assert "Target database is not up to date" in here.alembic("revision", "--autogenerate", "-m", "early", code=255)
    here.alembic("upgrade", "+1")
    assert f"{new} (head)" in here.alembic("current")
    here.alembic("stamp", before)
    assert revision_of(url)[0].startswith(before)
    here.alembic("stamp", "head")
    assert f"{new} (head) (current)" in here.alembic("history", "-i")


def test_two_branches_are_merged_or_put_in_line(empty_database_url: str, tmp_path: Path) -> None:
    url = empty_database_url
    here = Checkout(tmp_path, url)
    here.alembic("revision", "-m", "one")
    one = here.id("one")
    parent = re.findall(r"^Revises: (\w+)$", here.file("one").read_text(), re.MULTILINE)[0]
    here.alembic("revision", "-m", "other", "--head", parent, "--splice")
    other = here.id("other")
    assert here.alembic("heads").count("(head)") == 2
    assert one[:4] == other[:4]

    said = here.make("renumber", code=2)
    assert "are both newest" in said
    assert "are both newest" in here.make("migration", "NAME=third", code=2)
    assert "make renumber" in here.alembic("upgrade", "head", code=255)

    here.alembic("upgrade", "heads")
    assert set(revision_of(url)) == {one, other}
    here.alembic("merge", "heads", "-m", "join them")
    here.alembic("upgrade", "head")
    assert revision_of(url) == [here.id("join_them")]
    here.alembic("downgrade", parent)
    assert revision_of(url) == [parent]

    here.file("join_them").unlink()
    assert "after" in here.make("renumber", f"FILE=migrations/versions/{here.file('other').name}")
    here.alembic("upgrade", "head")
    assert revision_of(url) == [here.id("other")]
    assert here.id("other") == f"{int(one[:4]) + 1:04d}{other[4:]}"


def test_commands_that_need_no_database_ask_for_none(tmp_path: Path) -> None:
    here = Checkout(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing")
    here.alembic("revision", "-m", "empty")
    new = here.id("empty")
    assert here.alembic("heads") == f"{new} (head)\n"
    assert f"-> {new} (head), empty" in here.alembic("history")
    assert f"Rev: {new} (head)" in here.alembic("show", "head")
    assert "SET LOCAL lock_timeout" in here.alembic("upgrade", "head", "--sql")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "WAYBILL_DATABASE_URL is not set, so this is its default; set it to postgresql://USER:"),
        ("postgresql://x:secret@127.0.0.1:1/x", "The address is that of WAYBILL_DATABASE_URL"),
        (
            "postgresql://x:secret@nowhere.invalid/x?sslmode=require",
            "the host name cannot be resolved. The address is that of WAYBILL_DATABASE",
        ),
        ("not a url", "WAYBILL_DATABASE_URL: not a database URL; expected postgresql://"),
        ("mysql://x@localhost/x", "WAYBILL_DATABASE_URL: Waybill needs PostgreSQL"),
        ("", "WAYBILL_DATABASE_URL: not a database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, url: str | None, expected: str
) -> None:
    here = Checkout(tmp_path, url)
    if url is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 5432)) == 0:
                pytest.skip("a server listens at the default address")
    said = here.alembic("current", code=255)
    assert expected in said
    assert "sqlalchemy.url" not in said
    assert "secret" not in said


def test_a_wrong_password_and_a_missing_database_are_named_too(empty_database_url: str, tmp_path: Path) -> None:
    missing = Checkout(tmp_path, f"{empty_database_url}_gone")
    said = missing.alembic("upgrade", "head", code=255)
    assert "does not exist. The address is that of WAYBILL_DATABASE_URL" in said


def test_a_migration_without_a_name_is_asked_for_one(tmp_path: Path) -> None:
    here = Checkout(tmp_path, None)
    assert 'make migration NAME="order note"' in here.make("migration", code=2)
