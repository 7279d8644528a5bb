"""Run the tests of the release before on the tables of this one: `release_before.py [PYTEST ARGUMENTS]`.

While a release goes out, processes of the release before run on tables that are already migrated. So the code and the
tests of its commit (.ci/release_before.toml) are taken from git into a folder, the migrations of this tree are put into
it, and its tests are run there: every statement they send is one of that release, and the tables are the new ones.

Exit code 1 if the file is wrong, 0 if this copy has no history, otherwise that of pytest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from migrations.numbering import read_steps

ROOT = Path(__file__).parents[1]
FILE = ROOT / ".ci" / "release_before.toml"
SHARED = ("batches.py", "column_types.py")
"""What migrations may import: it goes with them."""


class WrongRelease(Exception):
    """The file does not name the release before; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--migrations", type=Path, default=ROOT / "migrations", help="the folder with the new ones")
    parser.add_argument("--check", action="store_true", help="only check that the file names a release")
    parser.add_argument("--python", default=sys.executable, help="that of an environment with the release's packages")
    arguments, rest = parser.parse_known_args()
    named = tomllib.loads(FILE.read_text())
    if missing := no_history():
        sys.stderr.write(f"The release before is not run: {missing}, so its code is not here.\n")
        return 0
    try:
        check(named["commit"], newest_tag())
        with tempfile.TemporaryDirectory(prefix="waybill-release-before-") as folder:
            release = Path(folder)
            unpack(named["commit"], release)
            check_revisions(release, named["revisions"])
            sys.stdout.write(f"The release before is {named['commit']}, at {', '.join(named['revisions'].values())}.\n")
            sys.stdout.flush()
            if arguments.check:
                return 0
            replace_migrations(release, arguments.migrations)
            left_out = [f"--deselect={test}" for test in named["left_out"]]
            listed = ["-n", "3", "--dist", "loadfile", *named["tests"]]
            return run_tests(arguments.python, release, [*(rest or listed), *left_out])
    except WrongRelease as error:
        sys.stderr.write(f".ci/release_before.toml: {error}\n")
        return 1


def git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    # The checkout may belong to another user.
    return subprocess.run(["git", "-c", "safe.directory=*", "-C", ROOT, *arguments], capture_output=True, check=False)


def no_history() -> str | None:
    """Why no earlier commit can be looked at; None if they can, or if it is a clone that should have them."""
    if shutil.which("git") is None:
        return "git is not installed"
    if not (ROOT / ".git").exists():
        return "this is a copy of one version and not a clone"
    return None


def newest_tag() -> str | None:
    """The commit of the newest tag `v...` below HEAD, if the clone has such tags."""
    found = git("describe", "--tags", "--abbrev=0", "--match=v*").stdout.decode().strip()
    return git("rev-parse", f"{found}^{{commit}}").stdout.decode().strip() if found else None


def check(commit: str, tag: str | None) -> None:
    """Raises `WrongRelease` if the commit is not here, is not below HEAD, or is not the newest release."""
    full = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").stdout.decode().strip()
    if not full:
        raise WrongRelease(
            f"this clone has no commit {commit}. If the clone is shallow: git fetch --unshallow (in a workflow: "
            "fetch-depth: 0). Otherwise name the commit of the last release"
        )
    if git("merge-base", "--is-ancestor", full, "HEAD").returncode != 0:
        raise WrongRelease(f"{commit} is not a commit before HEAD; name the commit of the last release")
    if tag is not None and tag != full:
        raise WrongRelease(f"the newest release has the commit {tag[:8]}, not {commit}; name that one")


def unpack(commit: str, folder: Path) -> None:
    with tarfile.open(fileobj=BytesIO(git("archive", commit).stdout)) as archive:
        archive.extractall(folder, filter="data")


def check_revisions(release: Path, revisions: dict[str, str]) -> None:
    """Raises `WrongRelease` if the release's newest migrations are others."""
    newest = max(read_steps(release / "migrations" / "versions"), key=lambda step: step.number).id
    if newest != revisions["alembic"]:
        raise WrongRelease(f"the newest migration of that commit is {newest}, not {revisions['alembic']}")


def replace_migrations(release: Path, new: Path) -> None:
    """Put this tree's migrations in the place of the release's. How they are run stays that of the release."""
    for versions in new.rglob("versions"):
        there = release / "migrations" / versions.relative_to(new)
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(versions, there, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHARED:
        shutil.copy(new / name, release / "migrations" / name)


def run_tests(python: str, release: Path, arguments: Sequence[str]) -> int:
    # The installed package is this tree; the release's comes first on the path.
    environment = {**os.environ, "PYTHONPATH": str(release), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=release, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
