"""`waybill migrate`: upgrade a database to the newest schema."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.database import close, make_engine
from services.settings import MigrationSettings, Settings
from services.sql import CONTENTION, LOCK_NOT_AVAILABLE, sqlstate
from services.startup import check_schema, check_server


class Which(StrEnum):
    """The databases that have migrations."""

    primary = "primary"
    analytics = "analytics"


def migrate(
    schema: Annotated[str | None, typer.Option(help="The schema to migrate. Default: the one in the settings.")] = None,
    database: Annotated[Which, typer.Option(help="The database to migrate.")] = Which.primary,
) -> None:
    """Upgrade the database to the newest schema. Concurrent runs wait for each other.

    It signs in with WAYBILL_MIGRATION_DATABASE_URL if that is set, and then grants what they need to the roles of
    WAYBILL_DATABASE_URL and WAYBILL_DATABASE_REPLICA_URL.
    """
    with plain_errors():
        migrate_database(MigrationSettings(), database, schema)
    say(f"The {'' if database is Which.primary else 'analytics '}database is at the newest revision.")


def migrate_database(settings: Settings, which: Which, schema: str | None = None) -> None:
    """Check that the database answers and is new enough, and upgrade it. Raises `CannotStart` and `CommandError`."""
    if which is Which.primary:
        check_database(as_owner(settings), migrated=False)
        upgrade_to_head(schema)
        return
    address = settings.migration_analytics_url or settings.analytics_url
    if address is None:
        raise CommandError("reports are off: set WAYBILL_ANALYTICS_URL to the address of an analytics database")
    check_database(settings.model_copy(update={"database_url": address}), migrated=False)
    upgrade_to_head(schema, which)


def as_owner(settings: Settings) -> Settings:
    """The settings with the address of the role that owns the tables."""
    return settings.model_copy(update={"database_url": settings.migration_database_url or settings.database_url})


def check_database(settings: Settings, *, migrated: bool = True) -> None:
    """Check that the database answers, is new enough and, if `migrated`, has this release's tables.

    Raises `CannotStart` if not.
    """

    async def check() -> None:
        engine = make_engine(settings, "cli", pool_size=1)
        try:
            await (check_schema if migrated else check_server)(engine, settings)
        finally:
            await close(engine)

    asyncio.run(check())


def upgrade_to_head(schema: str | None = None, which: Which = Which.primary) -> None:
    """Run the migrations with the settings of this process.

    Raises `CommandError` if Alembic refuses, or if other sessions lock a table for longer than a step waits, or in the
    other order than the step does (a deadlock).
    """
    # Imported here: it is slow to import, and most commands do not need it.
    from alembic import command
    from alembic.util import CommandError as AlembicError

    from migrations.config import ANALYTICS, alembic_config

    section = ANALYTICS if which is Which.analytics else "alembic"
    try:
        command.upgrade(alembic_config(schema=schema, section=section), "head")
    except AlembicError as error:
        raise CommandError(str(error)) from error
    except DBAPIError as error:
        if sqlstate(error) not in CONTENTION | {LOCK_NOT_AVAILABLE}:
            raise
        # The cause of a deadlock has several lines, with statements of other sessions.
        reason, *_ = str(error.orig).splitlines()
        raise CommandError(
            f"the migration stopped because other transactions were using a table ({reason}). "
            "Completed steps are kept; run `waybill migrate` again"
        ) from error
