"""`waybill database-roles`: create the database roles, and give the tables to their owner."""

from dataclasses import dataclass
from typing import Annotated

import psycopg
import typer
from psycopg import sql
from sqlalchemy import URL, make_url

from services.cli.console import CommandError, plain_errors, say
from services.settings import MigrationSettings, Settings

_MAY_TOO_MUCH = """
    SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls FROM pg_roles WHERE rolname = %s
"""

# What the owner of the version table owns: other tables in the same schema belong to someone else. Sequences of columns
# follow their tables, and what belongs to an extension stays with it.
_GIVE = """
DO $give$
DECLARE
    former oid := (
        SELECT relowner FROM pg_class WHERE relname = 'alembic_version' AND relnamespace = to_regnamespace({schema})
    );
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER TABLE %s OWNER TO %I', class.oid::regclass, {owner}) FROM pg_class AS class
        WHERE class.relnamespace = to_regnamespace({schema}) AND class.relowner = former
        AND (class.relkind IN ('r', 'p') OR class.relkind = 'S' AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = class.oid AND deptype IN ('a', 'i')
        ))
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO %I', procedure.oid::regprocedure, {owner})
        FROM pg_proc AS procedure
        WHERE procedure.pronamespace = to_regnamespace({schema}) AND procedure.proowner = former
        AND procedure.prokind = 'f' AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = procedure.oid AND deptype = 'e'
        )
    LOOP
        IF former <> (SELECT oid FROM pg_roles WHERE rolname = {owner}) THEN
            EXECUTE statement;
        END IF;
    END LOOP;
END $give$
"""


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of one database: who owns the tables, who runs the application, and who only reads."""

    owner: URL
    application: URL
    reader: str | None = None
    reader_password: str | None = None

    @property
    def logins(self) -> list[tuple[str, str | None]]:
        """Names and passwords."""
        found = [(str(url.username), _password(url)) for url in (self.owner, self.application)]
        return found if self.reader is None else [*found, (self.reader, self.reader_password)]


def database_roles(
    schema: Annotated[str | None, typer.Option(help="The schema of the tables. Default: that of the settings.")] = None,
) -> None:
    """Create the database roles, and give the tables to their owner. Safe to repeat.

    It signs in with WAYBILL_ADMIN_DATABASE_URL, which must be a superuser's. The owner is that of
    WAYBILL_MIGRATION_DATABASE_URL, the application's role that of WAYBILL_DATABASE_URL, and the reader that of
    WAYBILL_DATABASE_REPLICA_URL or WAYBILL_DATABASE_READ_ROLE. Run `waybill migrate` afterwards, which grants what they
    need.
    """
    with plain_errors():
        settings = MigrationSettings()
        if settings.admin_database_url is None or settings.migration_database_url is None:
            raise CommandError(
                "set WAYBILL_ADMIN_DATABASE_URL to a superuser's address of the database, and "
                "WAYBILL_MIGRATION_DATABASE_URL to that of the role that will own the tables"
            )
        administrator = make_url(settings.admin_database_url.get_secret_value())
        schema = schema or settings.database_schema
        roles = roles_of(settings)
        prepare(administrator, roles, schema)
        if settings.migration_analytics_url and settings.analytics_url:
            analytics = Roles(make_url(settings.migration_analytics_url), make_url(settings.analytics_url))
            prepare(administrator.set(database=analytics.owner.database), analytics, schema)
    say(f"The roles are ready: {', '.join(name for name, _ in roles.logins)}. Now run `waybill migrate`.")


def roles_of(settings: Settings) -> Roles:
    """The roles that the settings name. Raises `CommandError` if two of them are the same."""
    replica = make_url(settings.database_replica_url) if settings.database_replica_url else None
    reader = settings.readers
    roles = Roles(
        make_url(settings.migration_database_url or settings.database_url),
        make_url(settings.database_url),
        reader,
        _password(replica) if replica is not None and replica.username == reader else None,
    )
    names = [name for name, _ in roles.logins]
    if reader == roles.application.username:
        roles, names = Roles(roles.owner, roles.application), names[:2]
    if len({*names}) < len(names):
        raise CommandError(
            f"WAYBILL_MIGRATION_DATABASE_URL needs a different role from {roles.owner.username}, the application's"
        )
    return roles


def prepare(administrator: URL, roles: Roles, schema: str) -> None:
    """Create the roles, and make the owner the owner of the database and its tables. Raises `CommandError`."""
    address = administrator.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(address) as connection:
            connection.execute("SET LOCAL lock_timeout = '5s'")
            for name, password in roles.logins:
                _make_role(connection, name, password)
            _give(connection, roles, schema)
    except psycopg.Error as error:
        raise CommandError(f"cannot prepare the database roles: {' '.join(str(error).split())}") from error


def _make_role(connection: psycopg.Connection[tuple[object, ...]], name: str, password: str | None) -> None:
    found = connection.execute(_MAY_TOO_MUCH, [name]).fetchone()
    if found is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    elif found[0]:
        raise CommandError(
            f"the role {name} may do more than it should, such as a superuser: give the address another role, or take "
            "that right away with ALTER ROLE"
        )
    if password is not None:
        # Encrypted here, so that it appears in no log of the server.
        encrypted = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(encrypted))
        connection.execute(statement)


def _give(connection: psycopg.Connection[tuple[object, ...]], roles: Roles, schema: str) -> None:
    owner = sql.Identifier(str(roles.owner.username))
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, owner))
    # A temporary table could hide one of the owner's.
    connection.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    if connection.execute("SELECT to_regnamespace(%s)", [f'"{schema}"']).fetchone() != (None,):
        statement = "GRANT ALL ON SCHEMA {} TO {}" if schema == "public" else "ALTER SCHEMA {} OWNER TO {}"
        connection.execute(sql.SQL(statement).format(sql.Identifier(schema), owner))
    given = {"schema": sql.Literal(schema), "owner": sql.Literal(str(roles.owner.username))}
    connection.execute(sql.SQL(_GIVE).format(**given))
    if roles.reader is not None:
        # To see that a replica follows a new primary.
        connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(roles.reader)))


def _password(url: URL) -> str | None:
    return None if url.password is None else str(url.password)
