"""Write a migration from the difference between the models and the migrations: `migration.py NAME`.

The difference is taken on a scratch database that is deleted afterwards, so no other database is needed or touched.
"""

import logging
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script
from alembic.util import CommandError

from migrations.numbering import faults
from services.local.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[1]
USAGE = 'Say what the migration does, in a few words: make migration NAME="order note"'
NEXT = """\
Read it and edit it (docs/how-to/migrations.md), then try it:
  make lint-migrations
  make test ARGS="tests/migrations"
"""


def main(name: str) -> int:
    if not name.strip():
        return fail(USAGE)
    if wrong := faults(ROOT / "migrations" / "versions"):
        return fail("\n".join(wrong))
    logging.basicConfig(level=logging.WARNING)
    config = Config(ROOT / "alembic.ini", stdout=sys.stderr)
    folder = tempfile.TemporaryDirectory(prefix="waybill-migration-")
    with folder as path, EmbeddedPostgres(Path(path), durable=False) as postgres:
        postgres.create_database("scratch")
        config.attributes["database_url"] = postgres.url("scratch")
        try:
            command.upgrade(config, "head")
            written = command.revision(config, name.strip(), autogenerate=True)
        except CommandError as error:
            return fail(str(error))
    assert isinstance(written, Script)
    file = Path(written.path).relative_to(ROOT)
    if "op." not in file_body(ROOT / file):
        sys.stdout.write("The models do not differ from the migrations: the file has no statements yet.\n")
    sys.stdout.write(f"Wrote {file}\n{NEXT}")
    return 0


def file_body(path: Path) -> str:
    """The statements of the file, but for those that every migration has."""
    return path.read_text().replace("op.execute(\"SET LOCAL lock_timeout = '5s'\")", "").replace("import op", "")


def fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
