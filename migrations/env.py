"""How Alembic connects to the database: asynchronously, one run at a time, one transaction per step.

URL and schema come from the settings (`WAYBILL_MIGRATION_DATABASE_URL`, or `WAYBILL_DATABASE_URL`, and
`WAYBILL_DATABASE_SCHEMA`), unless

- `-x schema=NAME`, or `config.attributes["schema"]`, names a tenant's schema, which is created if missing. It gets its
  own version table; the schema of the extensions follows it in the search path;
- `config.attributes["database_url"]` gives another URL;
- `config.attributes["connection"]` or `["engine"]` is a `Connection`, an `Engine` or an `AsyncEngine` to use. A
  connection must not be in a transaction, since steps commit one by one.

`alembic revision` without `--autogenerate`, `alembic merge` and `alembic history` need no database.

The analytics database (`alembic -n analytics`, `WAYBILL_ANALYTICS_URL`) has a history of its own in
`analytics/versions`, and is treated in the same way.

After an upgrade or downgrade, the roles of the application and of its readers, if they are others than the one that
migrates, are granted what `services/privileges.py` says.

Upgrades and downgrades hold a session-level advisory lock, so that concurrent runs wait for each other. Connect to
PostgreSQL directly or through a pooler in session mode: in transaction mode, such a lock would belong to a connection
that others use, too.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import blake2b
from logging.config import fileConfig
from pathlib import Path
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.command import history
from alembic.util import CommandError
from asyncpg import InterfaceError, PostgresError
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import dialect as postgresql
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel import AutoString

from migrations import column_types
from migrations.config import ANALYTICS
from migrations.numbering import duplicates, faults, number_new_files
from services import privileges
from services.database import Limits, make_engine
from services.models import metadata
from services.outbox.models import PgSnapshot, Xid8
from services.outbox.retention.repository import is_partition
from services.reports.models import metadata as analytics_metadata
from services.settings import MigrationSettings, Settings, explain
from services.sql import INSUFFICIENT_PRIVILEGE, UNDEFINED_OBJECT, sqlstate
from services.startup import reason_of

logger = logging.getLogger("alembic.env")

_LOCK = int.from_bytes(b"waybill!", "big")

_SEARCH_PATH = """
    SELECT set_config('search_path', {schema} || ', ' || coalesce((
        SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'pg_trgm'
    ), 'waybill_extensions'), false)
"""
"""The schema, then that of the extensions: the one that step 0001 makes, unless they were there before."""

VERSION_TABLE = "alembic_version"

OF_ANALYTICS = context.config.config_ini_section == ANALYTICS
"""Whether this run is about the analytics database."""

# SQLAlchemy does not know these types by name, and would not compare the columns.
ischema_names["xid8"] = Xid8
ischema_names["pg_snapshot"] = PgSnapshot


def read_settings() -> Settings:
    """The settings for this run. Raises `CommandError` if they are not valid."""
    arguments = context.get_x_argument(as_dictionary=True)
    if unknown := arguments.keys() - {"schema"}:
        raise CommandError(f"unknown -x argument: {', '.join(sorted(unknown))}; known: schema=NAME")
    attributes = context.config.attributes
    given: dict[str, Any] = {
        "migration_analytics_url" if OF_ANALYTICS else "migration_database_url": attributes.get("database_url"),
        "database_schema": arguments.get("schema", attributes.get("schema")),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        settings: Settings = MigrationSettings(**chosen)
    except ValidationError as error:
        raise CommandError(explain(error)) from error
    if settings.database_schema.startswith("pg_") or settings.database_schema == "information_schema":
        raise CommandError(f"{settings.database_schema} belongs to PostgreSQL; choose another schema")
    given_one = attributes.get("connection") or attributes.get("engine") or context.is_offline_mode()
    if OF_ANALYTICS and settings.analytics_owner_url() is None and not given_one:
        raise CommandError("reports are off: set WAYBILL_ANALYTICS_URL to the address of the analytics database")
    return settings


def options(settings: Settings) -> dict[str, Any]:
    """Options that online and offline runs share."""
    return {
        "target_metadata": analytics_metadata if OF_ANALYTICS else metadata,
        "version_table": VERSION_TABLE,
        # Always set: by the search path, a new tenant would find the version table of public.
        "version_table_schema": settings.database_schema,
        "transaction_per_migration": True,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": include_name,
        "render_item": render_item,
    }


def include_name(name: str | None, type_: str, _parents: object) -> bool:
    """Ignore what changes without migrations: the event log's partitions, and Alembic's own table."""
    return type_ != "table" or name is None or not (is_partition(name) or name == VERSION_TABLE)


def render_item(type_: str, item: object, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render our own column types as `Name()`, imported from the migrations; leave everything else to Alembic.

    Raises `CommandError` if the migrations have no copy of the type: they import nothing from the services.
    """
    if isinstance(item, AutoString):
        # SQLModel's type for str. The migration gets the column's type, and need not import SQLModel.
        length = getattr(item.impl, "length", None)
        return f"sa.String(length={length})" if length else "sa.String()"
    module, name = type(item).__module__, type(item).__name__
    if type_ != "type" or not module.startswith("services."):
        return False
    if not hasattr(column_types, name):
        raise CommandError(f"a migration cannot import {name} from {module}; copy it to migrations/column_types.py")
    autogen_context.imports.add(f"from {column_types.__name__} import {name}")
    return f"{name}()"


def quoted(schema: str) -> str:
    """The schema's name, quoted for SQL if necessary."""
    return postgresql().identifier_preparer.quote(schema)  # type: ignore[no-untyped-call]


def lock_of(schema: str) -> int:
    """The advisory lock of this schema's migrations. Such locks belong to the database, which tenants share."""
    if schema == "public":
        return _LOCK
    return int.from_bytes(blake2b(f"waybill migrations {schema}".encode(), digest_size=8).digest(), "big", signed=True)


def search_path(schema: str) -> str:
    """The statement that sets the search path of the session."""
    name = quoted(schema).replace("'", "''")
    return _SEARCH_PATH.format(schema=f"'{name}'")


def run_offline(settings: Settings) -> None:
    """Print the SQL, without a connection."""
    schema = settings.database_schema
    changes_the_database()  # raises if it is not clear how
    context.configure(
        dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **options(settings)
    )
    lock = lock_of(schema)
    context.execute(f"SELECT pg_advisory_lock({lock})")
    if schema != "public":
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    context.execute(search_path(schema))
    with context.begin_transaction():
        context.run_migrations()
        for grant in grants(settings):
            context.execute(grant)
    context.execute(f"SELECT pg_advisory_unlock({lock})")


def run_online(connection: Connection, settings: Settings) -> None:
    if connection.in_transaction():
        raise CommandError("the given connection is in a transaction; end it first, since steps commit one by one")
    with (
        one_at_a_time(connection, lock_of(settings.database_schema)),
        inside_schema(connection, settings.database_schema),
    ):
        context.configure(connection=connection, **options(settings))
        with context.begin_transaction():
            context.run_migrations()
        if changes_the_database():
            grant_privileges(connection, settings)


def grant_privileges(connection: Connection, settings: Settings) -> None:
    """Grant what `grants` says. Raises `CommandError` if a role does not exist, or the tables belong to another one."""
    try:
        for grant in grants(settings):
            connection.exec_driver_sql(grant)
        connection.commit()
    except DBAPIError as error:
        if sqlstate(error) not in (UNDEFINED_OBJECT, INSUFFICIENT_PRIVILEGE):
            raise
        connection.rollback()
        raise CommandError(
            f"the tables are migrated, but privileges could not be granted ({reason_of(error)}): run `waybill "
            "database-roles` (docs/how-to/database-roles.md), and migrate again"
        ) from error


def grants(settings: Settings) -> list[str]:
    """The statements that grant privileges to the roles of the application and of its readers."""
    attributes = context.config.attributes
    if context.config.attributes.keys() & {"connection", "engine"}:
        return []
    tables = privileges.ANALYTICS if OF_ANALYTICS else privileges.TABLES
    own = settings.analytics_async_url() if OF_ANALYTICS else settings.async_url()
    owner = settings.analytics_owner_url() if OF_ANALYTICS else settings.owner_url()
    assert owner is not None, "read_settings refuses to run without it"
    named = settings.model_fields_set & {"analytics_url" if OF_ANALYTICS else "database_url"}
    application, reader = attributes.get(
        "roles", (own.username if own and named else None, None if OF_ANALYTICS else settings.readers)
    )
    made: list[str] = []
    if application not in (None, owner.username):
        made.append(privileges.grant_to_application(application, settings.database_schema, tables))
    if reader not in (None, owner.username, application):
        made.append(privileges.grant_to_reader(reader, settings.database_schema, tables))
    return made


@contextmanager
def one_at_a_time(connection: Connection, lock: int) -> Iterator[None]:
    """Hold the advisory lock while the database is changed. Commands that only read do not wait for it."""
    if not changes_the_database():
        yield
        return
    announced = False
    # Polled, because a single waiting statement would hold a snapshot, and CREATE INDEX CONCURRENTLY in the run that
    # holds the lock would wait for that snapshot.
    while not connection.scalar(text(f"SELECT pg_try_advisory_lock({lock})")):
        connection.commit()
        if not announced:
            logger.info("waiting for another migration run to finish")
            announced = True
        connection.execute(text("SELECT pg_sleep(0.2)"))
        connection.commit()
    connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execute(text(f"SELECT pg_advisory_unlock({lock})"))
            connection.commit()


def changes_the_database() -> bool:
    """Whether the command has a target. Raises `CommandError` if the history does not say which step that is."""
    folder = Path(context.script.versions)
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    except CommandError as error:
        raise CommandError("; ".join(faults(folder)) or str(error)) from error
    if wrong := duplicates(folder):
        raise CommandError("; ".join(wrong))
    return True


def needs_no_database() -> bool:
    """Whether the command is `revision` without `--autogenerate`, `merge`, or `history` without the current revision.

    With `revision_environment`, Alembic runs this file for them, too.
    """
    given = context.config.cmd_opts
    if given is not None and given.cmd[0] is history:
        return not (given.indicate_current or "current" in (given.rev_range or ""))
    context.configure(dialect_name="postgresql")
    options = context.get_context().opts
    # Only commands that write a file from the template give arguments for it.
    revision = options.get("revision_context")
    return "template_args" in options and (revision is None or not revision.command_args["autogenerate"])


def run_without_database() -> None:
    context.configure(dialect_name="postgresql", as_sql=True)
    context.run_migrations()


@contextmanager
def inside_schema(connection: Connection, schema: str) -> Iterator[None]:
    """Make `schema` the default for unqualified names, and restore the old one: the connection may be the caller's."""
    if schema != "public" and changes_the_database():
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"))
    path_before = connection.scalar(text("SELECT current_setting('search_path')"))
    connection.execute(text(search_path(schema)))
    connection.commit()
    default_before = connection.dialect.default_schema_name
    connection.dialect.default_schema_name = schema
    try:
        yield
    finally:
        connection.dialect.default_schema_name = default_before
        if not connection.invalidated:
            connection.rollback()
            connection.execute(text("SELECT set_config('search_path', :path, false)"), {"path": path_before})
            connection.commit()


async def run_on_engine(engine: AsyncEngine, settings: Settings) -> None:
    try:
        async with connected(engine) as connection:
            await connection.run_sync(run_online, settings)
    finally:
        # Even if the engine was given: its connections belong to this event loop, which ends now.
        await engine.dispose()


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection. Raises `CommandError`, with the URL, if there is none."""
    try:
        connection = await engine.connect()
    except (OSError, SQLAlchemyError, PostgresError, InterfaceError) as error:
        address = engine.url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
        raise CommandError(
            f"cannot connect to the database at {address}: {reason_of(error)}. {origin_of_the_address()}"
        ) from error
    try:
        if getattr((await connection.get_raw_connection()).driver_connection, "is_pooled", False):
            raise CommandError(
                "migrations need a session of the server, and the database is behind a pooler: set "
                "WAYBILL_MIGRATION_DATABASE_URL to the address of PostgreSQL itself for this command"
            )
        yield connection
    finally:
        await connection.close()


def origin_of_the_address() -> str:
    """Where the address of the database comes from."""
    if context.config.attributes.keys() & {"database_url", "engine"}:
        return "The program that runs the migrations gave this address"
    settings = MigrationSettings()
    if settings.migration_database_url is not None:
        return "The address is that of WAYBILL_MIGRATION_DATABASE_URL"
    if "database_url" in settings.model_fields_set:
        return "The address is that of WAYBILL_DATABASE_URL"
    return (
        "WAYBILL_DATABASE_URL is not set, so this is its default; set it to postgresql://USER:PASSWORD@HOST:PORT/NAME"
    )


def own_engine(settings: Settings) -> AsyncEngine:
    """An engine that caches no prepared statements, since each step may invalidate them."""
    address = settings.analytics_owner_url() if OF_ANALYTICS else settings.owner_url()
    assert address is not None, "read_settings refuses to run without it"
    url = address.update_query_dict({"prepared_statement_cache_size": "0"})
    return make_engine(settings, "migrate", url, limits=Limits.of_migrations())


def run() -> None:
    number_new_files(context.script)
    if needs_no_database():
        run_without_database()
        return
    # Only for Alembic's command line; callers in Python have set up logging already.
    if context.config.config_file_name is not None and context.config.cmd_opts is not None:
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    settings = read_settings()
    if context.is_offline_mode():
        run_offline(settings)
        return
    attributes = context.config.attributes
    match attributes.get("connection") or attributes.get("engine"):
        case None:
            asyncio.run(run_on_engine(own_engine(settings), settings))
        case Connection() as connection:
            run_online(connection, settings)
        case Engine() as engine:
            with engine.connect() as connection:
                run_online(connection, settings)
        case AsyncEngine() as engine:
            asyncio.run(run_on_engine(engine, settings))
        case other:
            raise CommandError(f"expected a Connection, an Engine or an AsyncEngine, not {type(other).__name__}")


run()
