"""`waybill migrate`: upgrade a database to the newest schema."""

from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.database import sync_session
from services.settings import Environment, Settings

OLDEST_SERVER = 150_000
_LOCK_NOT_AVAILABLE = "55P03"


def migrate(
    schema: Annotated[str | None, typer.Option(help="The schema to migrate. Default: the one in the settings.")] = None,
) -> None:
    """Upgrade the database to the newest schema. Concurrent runs wait for each other."""
    with plain_errors():
        # As in migrations/env.py: a release step needs the database's address, but not the services' secrets.
        check_database(Settings(environment=Environment.development))
        upgrade_to_head(schema)
    say("The database is at the newest revision.")


def check_database(settings: Settings) -> None:
    """Check that the database answers and is new enough. Raises `CommandError` if not."""
    address = settings.sync_url().render_as_string(hide_password=True)
    try:
        with sync_session(settings) as session:
            version = int(session.scalar(text("SELECT current_setting('server_version_num')")) or 0)
    except DBAPIError as error:
        raise CommandError(f"cannot connect to the database at {address}: {error.orig}") from error
    if version < OLDEST_SERVER:
        raise CommandError(f"the server at {address} is too old: Waybill needs PostgreSQL 15 or newer")


def upgrade_to_head(schema: str | None = None) -> None:
    """Run the migrations with the settings of this process.

    Raises `CommandError` if Alembic refuses, or if another session locks a table for longer than a step waits.
    """
    # Imported here: it is slow to import, and most commands do not need it.
    from alembic import command
    from alembic.util import CommandError as AlembicError

    from migrations.config import alembic_config

    try:
        command.upgrade(alembic_config(schema=schema), "head")
    except AlembicError as error:
        raise CommandError(str(error)) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise CommandError(
            f"the migration stopped because a table was in use for too long ({error.orig}). "
            "Completed steps are kept; run `waybill migrate` again"
        ) from error
