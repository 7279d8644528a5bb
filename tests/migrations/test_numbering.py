"""Numbers of migrations: given to new files, kept apart on two branches, checked, and mended by one command."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from migrations.config import alembic_config
from migrations.numbering import ID, faults, move_to_the_end, read_steps

PROJECT = Path(__file__).parents[2]
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
"""No server listens there: what succeeds needs no database."""

STEP = '''"""{title}

Revision ID: {id}
Revises: {shown}
"""

revision: str = "{id}"
down_revision: str | None = {parents!r}


def upgrade() -> None:
    """{title}"""


def downgrade() -> None:
    """{title}"""
'''

Write = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A copy of the migrations, for `alembic.command`."""
    scripts = shutil.copytree(PROJECT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("*.pyc"))
    found = alembic_config(NOWHERE)
    found.set_main_option("script_location", str(scripts))
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a small migration into the folder of the test, with two before it."""

    def file(name: str, id_: str, after: str | tuple[str, ...] | None) -> Path:
        path = tmp_path / name
        shown = after if isinstance(after, str) else ", ".join(after or ())
        path.write_text(STEP.format(id=id_, shown=shown, parents=after, title=name))
        return path

    file("0001_first.py", "0001", None)
    file("0002_second.py", "0002", "0001")
    return file


def id_of(script: object) -> str:
    assert isinstance(script, Script)
    return script.revision


def head_of(config: Config) -> str:
    return ScriptDirectory.from_config(config).get_current_head() or ""


def folder_of(config: Config) -> Path:
    return Path(config.get_main_option("script_location") or "", "versions")


def test_the_history_has_no_fault() -> None:
    assert faults(PROJECT / "migrations" / "versions") == []


def test_a_new_file_gets_the_next_number_and_letters_without_a_database(config: Config) -> None:
    before = int(head_of(config)[:4])
    for number in (before + 1, before + 2):
        found = ID.fullmatch(id_of(command.revision(config, "empty")))
        assert found is not None
        assert int(found["number"]) == number
        assert found["letters"]
    assert faults(folder_of(config)) == []


def test_an_id_that_was_chosen_is_kept_and_the_next_one_still_has_a_number(config: Config) -> None:
    before = int(head_of(config)[:4])
    assert id_of(command.revision(config, "chosen", rev_id="chosen")) == "chosen"
    assert int(id_of(command.revision(config, "next"))[:4]) == before + 2
    assert any("chosen_chosen.py has the id chosen" in fault for fault in faults(folder_of(config)))


def test_two_branches_can_be_merged_and_continued(config: Config) -> None:
    parent = head_of(config)
    one = id_of(command.revision(config, "one"))
    other = id_of(command.revision(config, "other", head=parent, splice=True))
    assert one[:4] == other[:4]
    assert one != other
    (fault,) = faults(folder_of(config))
    assert "are both newest" in fault
    assert "make renumber" in fault
    assert "alembic merge heads" in fault

    merge = id_of(command.merge(config, "heads", "join"))
    assert int(merge[:4]) == int(one[:4]) + 1
    after = id_of(command.revision(config, "after"))
    assert int(after[:4]) == int(merge[:4]) + 1
    assert faults(folder_of(config)) == []


def test_upgrading_to_the_head_of_two_branches_says_how_to_mend_it(config: Config) -> None:
    parent = head_of(config)
    command.revision(config, "one")
    command.revision(config, "other", head=parent, splice=True)
    with pytest.raises(CommandError, match=r"are both newest.*make renumber"):
        command.upgrade(config, "head", sql=True)


def test_two_files_with_one_id_are_refused_before_one_of_them_is_lost(config: Config) -> None:
    (first,) = folder_of(config).glob("0014_*.py")
    first.with_name("0014_again.py").write_text(first.read_text())
    with (
        pytest.warns(UserWarning, match="present more than once"),
        pytest.raises(CommandError, match="the same id 0014"),
    ):
        command.upgrade(config, "0014", sql=True)


@pytest.mark.parametrize(
    ("name", "id_", "after", "expected"),
    [
        ("0002_other.py", "0002", "0001", "0002_other.py and 0002_second.py have the same id 0002; move the newer one"),
        ("0003_x.py", "0003", "0009", "0003_x.py comes after 0009, which does not exist: make renumber"),
        ("0004_x.py", "0004", "0002", "0004_x.py has the id 0004, but comes after 0002: make renumber"),
        ("1975ea83b712_x.py", "1975ea83b712", "0002", "has the id 1975ea83b712, but comes after 0002: make renumber"),
        ("0004_x.py", "0003", "0002", "0004_x.py is not named after its id 0003: make renumber"),
        ("0002bcdf_x.py", "0002bcdf", "0001", "0002_second.py and 0002bcdf_x.py are both newest"),
    ],
)
def test_each_fault_is_named_with_its_fix(
    write: Write, tmp_path: Path, name: str, id_: str, after: str, expected: str
) -> None:
    write(name, id_, after)
    found = faults(tmp_path)
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_right_history_has_no_fault(write: Write, tmp_path: Path) -> None:
    write("0003_plain.py", "0003", "0002")
    write("0004bcdf_one.py", "0004bcdf", "0003")
    write("0004ghjk_two.py", "0004ghjk", "0003")
    write("0005mnpq_join.py", "0005mnpq", ("0004bcdf", "0004ghjk"))
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "id_", "after", "now"),
    [
        ("0002_other.py", "0002", "0001", "0003_other.py"),
        ("0002bcdf_other.py", "0002bcdf", "0001", "0003bcdf_other.py"),
        ("0007_other.py", "0003", "0002", "0003_other.py"),
        ("0003_other.py", "0003", "0009", "0003_other.py"),
    ],
)
def test_a_file_is_moved_to_the_end_with_everything_that_names_its_place(
    write: Write, tmp_path: Path, name: str, id_: str, after: str, now: str
) -> None:
    moved = move_to_the_end(tmp_path, [write(name, id_, after)])
    assert [step.path.name for _, step in moved] == [now]
    assert faults(tmp_path) == []
    text = (tmp_path / now).read_text()
    new_id = now.partition("_")[0]
    assert re.findall(r"^(?:Revision ID|Revises): (.*)$", text, re.MULTILINE) == [new_id, "0002"]
    assert f'revision: str = "{new_id}"\ndown_revision: str | None = "0002"\n' in text
    assert len(read_steps(tmp_path)) == 3


def test_a_file_with_an_id_of_alembics_gets_a_number(write: Write, tmp_path: Path) -> None:
    move_to_the_end(tmp_path, [write("1975ea83b712_odd.py", "1975ea83b712", "0002")])
    assert re.fullmatch(r"0003[a-z]{4}_odd\.py", read_steps(tmp_path)[-1].path.name)
    assert faults(tmp_path) == []


def test_several_files_are_moved_in_the_order_given(write: Write, tmp_path: Path) -> None:
    write("0003_theirs.py", "0003", "0002")
    mine = [write("0003_mine.py", "0003", "0002"), write("0004_mine_too.py", "0004", "0003")]
    move_to_the_end(tmp_path, mine)
    assert [(step.path.name, step.parents) for step in read_steps(tmp_path)[2:]] == [
        ("0003_theirs.py", ("0002",)),
        ("0004_mine.py", ("0003",)),
        ("0005_mine_too.py", ("0004",)),
    ]
    assert faults(tmp_path) == []


def test_nothing_is_moved_while_the_others_have_no_end(write: Write, tmp_path: Path) -> None:
    write("0003bcdf_one.py", "0003bcdf", "0002")
    write("0003ghjk_two.py", "0003ghjk", "0002")
    third = write("0003mnpq_three.py", "0003mnpq", "0002")
    with pytest.raises(ValueError, match="are both newest; name every file that has to move"):
        move_to_the_end(tmp_path, [third])
    assert third.exists()


def test_the_command_moves_a_file_and_names_the_lines_that_mention_it(write: Write) -> None:
    write("0003_theirs.py", "0003", "0002")
    file = write("0003_mine.py", "0003", "0002")

    def run(*arguments: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, PROJECT / ".ci" / "renumber.py", *arguments], capture_output=True, text=True, check=False
        )

    moved = run(file)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert moved.stdout.startswith("0003_mine.py is 0004_mine.py now, after 0003\n")
    assert "check this line, which names 0003: migrations/versions/0003_ledger.py:3\n" in moved.stdout
    assert (run(file).returncode, run().returncode) == (1, 0)
