"""Migrate a fresh primary and analytics database, and compare them with the models. Exit code 1: they differ."""

import logging
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.util import CommandError

from migrations.config import ANALYTICS, alembic_config
from services.local.embedded import EmbeddedPostgres


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    folder = tempfile.TemporaryDirectory(prefix="waybill-drift-")
    with folder as path, EmbeddedPostgres(Path(path), durable=False) as postgres:
        for section in ("alembic", ANALYTICS):
            name = f"drift_{section}"
            postgres.create_database(name)
            config = alembic_config(postgres.url(name), section=section)
            command.upgrade(config, "head")
            try:
                command.check(config)
            except CommandError as error:
                sys.stderr.write(f"{section}: {error}\n")
                return 1
    sys.stdout.write("The migrations match the models.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
