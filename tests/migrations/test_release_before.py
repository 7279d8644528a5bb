"""The release before on the tables of this one: which release it is, and that a migration that breaks it is found."""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from migrations.config import alembic_config
from tests.migrations.schema import read_schema

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / ".ci" / "release_before.py"

pytestmark = pytest.mark.skipif(
    not (PROJECT / ".git").exists(), reason="the code of the release before comes from git, and this is not a clone"
)

A_TEST = "tests/api/test_orders.py::test_two_lines_of_one_product_count_together"
"""A test of the release before that places an order."""

STEP = '''"""planted

Revision ID: 9999
Revises: {parent}
"""

from alembic import op

revision: str = "9999"
down_revision: str | None = "{parent}"


def upgrade() -> None:
    op.execute("{statement}")


def downgrade() -> None:
    op.execute("SELECT 1")
'''


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_before", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )


def test_the_file_names_a_commit_of_this_history_and_its_newest_migrations() -> None:
    ran = run("--check")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.fixture
def history(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """A small repository for the script; returns the commits of two releases, and one beside them. HEAD is newer."""
    monkeypatch.setattr(script, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        ran = subprocess.run(["git", "-C", tmp_path, *identity, *arguments], capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    def commit(message: str) -> str:
        git("commit", "--quiet", "--allow-empty", "--message", message)
        return git("rev-parse", "HEAD")

    git("init", "--quiet", "--initial-branch=main")
    first = commit("first release")
    git("switch", "--quiet", "--create", "other")
    other = commit("beside it")
    git("switch", "--quiet", "main")
    second = commit("second release")
    git("tag", "v2", second)
    commit("on the way to the third")
    return first, second, other


def test_a_release_that_is_not_the_newest_or_not_there_is_refused(
    script: ModuleType, history: tuple[str, str, str]
) -> None:
    first, second, other = history
    assert script.newest_tag() == second
    script.check(second, second)
    script.check(first, None)
    with pytest.raises(script.WrongRelease, match="name that one"):
        script.check(first, second)
    with pytest.raises(script.WrongRelease, match="is not a commit before HEAD"):
        script.check(other, None)
    with pytest.raises(script.WrongRelease, match="git fetch --unshallow"):
        script.check("0" * 40, None)


def test_a_copy_without_history_is_distinguished_from_a_clone(
    script: ModuleType, history: tuple[str, str, str], tmp_path: Path
) -> None:
    assert script.no_history() is None
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    assert script.no_history() == "this is a copy of one version and not a clone"


def test_other_migrations_than_the_file_says_are_refused(script: ModuleType, tmp_path: Path) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_only.py").write_text('revision = "0001"\ndown_revision = None\n')
    script.check_revisions(tmp_path, {"alembic": "0001"})
    with pytest.raises(script.WrongRelease, match="the newest migration of that commit is 0001, not 0002"):
        script.check_revisions(tmp_path, {"alembic": "0002"})


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("ALTER TABLE orders ADD COLUMN gift boolean", 0, "1 passed"),
        ("ALTER TABLE orders ADD COLUMN gift boolean NOT NULL", 1, "1 failed"),
        ("ALTER TABLE orders ADD CHECK (total > 1000000)", 1, "1 failed"),
    ],
)
def test_a_migration_that_breaks_the_release_before_is_found(
    tmp_path: Path, statement: str, code: int, said: str
) -> None:
    planted = shutil.copytree(
        PROJECT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__")
    )
    parent = ScriptDirectory.from_config(alembic_config()).get_current_head()
    (planted / "versions" / "9999_planted.py").write_text(STEP.format(parent=parent, statement=statement))
    ran = run("--migrations", planted, A_TEST)
    assert ran.returncode == code, ran.stdout
    assert said in ran.stdout


def test_released_migrations_make_the_tables_that_they_made_when_they_were_released(
    script: ModuleType, database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """A released migration may be changed in how it locks, but not in what it makes."""
    named = tomllib.loads((PROJECT / ".ci" / "release_before.toml").read_text())
    script.unpack(named["commit"], tmp_path / "release")
    as_released = shutil.copytree(
        PROJECT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.rmtree(as_released / "versions")
    shutil.copytree(tmp_path / "release" / "migrations" / "versions", as_released / "versions")
    config = alembic_config(empty_database_url)
    config.set_main_option("script_location", str(as_released))
    command.upgrade(config, "head")
    command.downgrade(alembic_config(database_url), named["revisions"]["alembic"])
    assert read_schema(empty_database_url) == read_schema(database_url)
