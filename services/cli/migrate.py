"""`waybill migrate`: bring a database to the newest schema."""

from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.database import sync_session
from services.settings import Settings, get_settings

OLDEST_SERVER = 150_000


def migrate(
    schema: Annotated[
        str | None, typer.Option(help="The schema to migrate; unless given, that of the settings.")
    ] = None,
) -> None:
    """Bring the database to the newest schema. Several may run at once: they wait for each other."""
    with plain_errors():
        check_database(get_settings())
        upgrade_to_head(schema)
    say("The database is at the newest revision.")


def check_database(settings: Settings) -> None:
    """See that the database answers and is new enough. Raises `CommandError` saying what is wrong with it."""
    address = settings.sync_url().render_as_string(hide_password=True)
    try:
        with sync_session(settings) as session:
            version = int(session.scalar(text("SELECT current_setting('server_version_num')")) or 0)
    except DBAPIError as error:
        raise CommandError(f"the database {address} does not take us: {error.orig}") from error
    if version < OLDEST_SERVER:
        raise CommandError(f"the server at {address} is too old: Waybill needs PostgreSQL 15 or newer")


def upgrade_to_head(schema: str | None = None) -> None:
    """Run the migrations with the settings of this process. Raises `CommandError` where Alembic refuses."""
    # Imported here: it takes a while, and most commands migrate nothing.
    from alembic import command
    from alembic.util import CommandError as AlembicError

    from migrations.config import alembic_config

    try:
        command.upgrade(alembic_config(schema=schema), "head")
    except AlembicError as error:
        raise CommandError(str(error)) from error
