"""Move migrations to the end of the history: `renumber.py FILE...`. Without a file, say what is wrong with it.

Exit code 1 if something is wrong.
"""

import re
import sys
from pathlib import Path

from migrations.numbering import faults, move_to_the_end

ROOT = Path(__file__).parents[1]
SEARCHED = ("docs", "migrations", "services", "tests", "worker", "CHANGELOG.md", "CONTRIBUTING.md")


def main(arguments: list[str]) -> int:
    files = [Path(argument).absolute() for argument in arguments]
    if missing := [str(file) for file in files if not file.is_file()]:
        return fail(f"no such file: {', '.join(missing)}")
    folders = sorted({file.parent for file in files}) if files else sorted(ROOT.glob("migrations/**/versions"))
    if files and len(folders) > 1:
        return fail("the files are in several folders; move those of one at a time")
    try:
        moved = move_to_the_end(folders[0], files) if files else []
    except ValueError as error:
        return fail(str(error))
    for before, after in moved:
        sys.stdout.write(
            f"{before.path.name} is {after.path.name} now, after {', '.join(after.parents) or 'nothing'}\n"
        )
    for before, after in moved:
        if before.id != after.id:
            for place in mentions(before.id):
                sys.stdout.write(f"  check this line, which names {before.id}: {place}\n")
    wrong = [line for folder in folders for line in faults(folder)]
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    if not wrong and not files:
        sys.stdout.write("Every migration has its number and its place.\n")
    return 1 if wrong else 0


def mentions(revision: str) -> list[str]:
    """Lines that name a revision, as `file:line`."""
    word = re.compile(rf"\b{revision}(?![0-9A-Za-z])")
    found = []
    for name in SEARCHED:
        top = ROOT / name
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.suffix in (".md", ".py") and file.is_file():
                lines = enumerate(file.read_text().splitlines(), start=1)
                found += [f"{file.relative_to(ROOT)}:{number}" for number, line in lines if word.search(line)]
    return found


def fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
