"""Checks what a process needs from its database: that it answers, is new enough and has the tables of this release."""

import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from migrations.revisions import revisions
from services.errors import CannotStart
from services.settings import Settings

logger = logging.getLogger(__name__)

SchemaState: TypeAlias = Literal["ok", "missing", "behind"]

OLDEST_SERVER = 150_000

_UNREACHABLE = (OSError, DBAPIError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What an attempt to connect raises. `OSError` includes timeouts and names that cannot be resolved."""

_NO_TLS = "rejected SSL upgrade"
"""What the driver says if the server answers that it has no TLS."""

_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})
"""OpenSSL's codes for a certificate that no known authority has signed."""

_VERSION = text("SELECT CAST(current_setting('server_version_num') AS integer)")

# Not by the search path, with which a tenant without tables might find those of another schema.
_TABLES = text("""
    SELECT wanted.schema IS NOT NULL, versions.oid IS NOT NULL, coalesce(
        has_schema_privilege(wanted.schema, 'USAGE') AND has_table_privilege(versions.oid, 'SELECT'), true
    ), current_user
    FROM (SELECT CAST(to_regnamespace(CAST(:schema AS text)) AS oid) AS schema) AS wanted
    LEFT JOIN pg_class AS versions ON versions.relname = 'alembic_version' AND versions.relnamespace = wanted.schema
""")

# A superuser has the rights of every role.
_ROLE = text("""
    SELECT rolname, rolsuper, EXISTS (
        SELECT FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND relname = 'alembic_version'
        AND pg_has_role(relowner, 'MEMBER')
    )
    FROM pg_roles WHERE rolname = current_user
""")

# A superuser may become any role, and so is among those that it finds, like a role that is granted a superuser's.
_SUPERUSER = text(
    "SELECT session_user, EXISTS (SELECT FROM pg_roles WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER'))"
)


class DatabaseAway(CannotStart):
    """The database cannot be reached, or refuses the connection. The message does not contain the password."""


class ServerTooOld(CannotStart):
    """The server is older than PostgreSQL 15."""


class UnsafeRole(CannotStart):
    """The database role is a superuser, or may become one, outside development."""


class SchemaNotReady(CannotStart):
    """The schema does not exist, has no tables, or has those of an older release."""


class Schema:
    """What this process knows about the tables of its database.

    A database at a newer revision than this release's is fine: during a release, the new one migrates first, and a
    migration must not break the release before it (CONTRIBUTING.md).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.exists = True
        self.state: SchemaState = "ok"
        self.complaint: str | None = None
        """Why this process should not be used, and what to do; None if the tables are there."""
        self._newer: str | None = None

    async def follow(self, connection: AsyncConnection) -> None:
        """`look`, and log if there is a new complaint or the last one is over."""
        before = self.complaint
        await self.look(connection)
        if self.complaint is not None and self.complaint != before:
            logger.error("%s", self.complaint)
        elif self.complaint is None and before is not None:
            logger.warning("the database has the tables of this release now")

    async def look(self, connection: AsyncConnection) -> None:
        """Compare the revisions. Database errors propagate."""
        found = await connection.execute(_TABLES, {"schema": self.name})
        self.exists, has_versions, is_granted, role = found.one()
        revision: str | None = None
        if not is_granted:
            self.state = "missing"
            self.complaint = (
                f"the database role {role} may not use the tables in the schema {self.name}: run `waybill migrate` "
                "with WAYBILL_MIGRATION_DATABASE_URL, which grants that to the role of WAYBILL_DATABASE_URL"
            )
            return
        if has_versions:
            # The name of a schema in the settings needs no escapes.
            version = text(f'SELECT max(version_num) FROM "{self.name}".alembic_version')  # noqa: S608
            revision = (await connection.execute(version)).scalar_one()
        self.state, self.complaint = self._judge(revision)

    def _judge(self, revision: str | None) -> tuple[SchemaState, str | None]:
        *_, head = revisions()
        if not self.exists:
            return "missing", (
                f"the database has no schema {self.name}: correct WAYBILL_DATABASE_SCHEMA, or create it with "
                "`waybill migrate`"
            )
        if revision is None:
            return "missing", f"the schema {self.name} has no tables: run `waybill migrate` first"
        if revision in revisions() and revision != head:
            return "behind", (
                f"the database is at revision {revision}, but this release needs {head}: run `waybill migrate` first"
            )
        if revision not in (head, self._newer):
            self._newer = revision
            logger.info("the database is at revision %s; the newest one of this release is %s", revision, head)
        return "ok", None


@contextmanager
def plain_connecting(settings: Settings) -> Iterator[None]:
    """Turn the errors of a database that cannot be reached into a `DatabaseAway`."""
    try:
        yield
    except _UNREACHABLE as error:
        raise DatabaseAway(f"cannot connect to the database at {_address(settings)}: {reason_of(error)}") from error


async def check_server(engine: AsyncEngine, settings: Settings) -> None:
    """Raises `DatabaseAway` or `ServerTooOld`."""
    with plain_connecting(settings):
        async with engine.connect() as connection:
            version: int = (await connection.execute(_VERSION)).scalar_one()
    if version < OLDEST_SERVER:
        raise ServerTooOld(f"the server at {_address(settings)} is too old: Waybill needs PostgreSQL 15 or newer")


@dataclass(frozen=True, slots=True)
class DatabaseRole:
    """The role that a process has in its database."""

    name: str
    is_superuser: bool
    owns_tables: bool

    @property
    def excess(self) -> str | None:
        """What it may do beyond what the application needs; None if nothing is known."""
        if self.is_superuser:
            return f"the database role {self.name} is a superuser"
        return f"the database role {self.name} owns the tables" if self.owns_tables else None


async def role_of(engine: AsyncEngine, schema: str) -> DatabaseRole:
    """The role of this engine's connections. Database errors propagate."""
    async with engine.connect() as connection:
        return DatabaseRole(*(await connection.execute(_ROLE, {"schema": schema})).one())


async def check_role(engine: AsyncEngine, settings: Settings) -> None:
    """Log a warning if the process may do more in its database than it needs."""
    excess = (await role_of(engine, settings.database_schema)).excess
    if excess is not None:
        logger.warning(
            "%s: with its password, what is append-only can be changed, and more. Run the API and the workers with a "
            "role of their own; see docs/how-to/database-roles.md",
            excess,
        )


async def check_schema(engine: AsyncEngine, settings: Settings, *, may_wait: bool = False) -> Schema:
    """What is known about the tables now.

    Raises `DatabaseAway`, `ServerTooOld`, `UnsafeRole`, or `SchemaNotReady` unless the tables are those of this release
    or of a newer one. With `may_wait`, a complaint is logged instead, unless the schema does not exist: its name may be
    wrong.
    """
    await check_server(engine, settings)
    schema = Schema(settings.database_schema)
    with plain_connecting(settings):
        async with engine.connect() as connection:
            if not settings.is_development:
                await _refuse_superuser(connection, settings)
            await schema.look(connection)
    if schema.complaint is not None:
        if schema.exists and may_wait:
            logger.error("%s", schema.complaint)
        else:
            raise SchemaNotReady(schema.complaint)
    return schema


async def may_become_superuser(connection: AsyncConnection) -> tuple[str, bool]:
    """The session's role, and whether it is a superuser or may become one."""
    role, is_superuser = (await connection.execute(_SUPERUSER)).one()
    return role, is_superuser


async def _refuse_superuser(connection: AsyncConnection, settings: Settings) -> None:
    role, is_superuser = await may_become_superuser(connection)
    if is_superuser:
        raise UnsafeRole(
            f"the role {role} at {_address(settings)} is a superuser, or may become one, and could switch off what "
            "protects the books: set WAYBILL_DATABASE_URL to an ordinary role that may use the tables "
            "(docs/reference/production-checks.md)"
        )


def reason_of(error: BaseException) -> str:
    """Why a connection failed, in a few words on one line."""
    cause = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        # SQLAlchemy wraps the driver's error in one of its own.
        cause = error.orig if isinstance(error.orig, asyncpg.PostgresError) else error.orig.__cause__ or error.orig
    match cause:
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is refused: {_fault_of_certificate(cause)}"
        case ssl.SSLError():
            return f"TLS failed: {cause.reason or cause}"
        case ConnectionError(errno=None) if _NO_TLS in str(cause):
            return "it does not offer TLS, which the sslmode in the address requires"
        case asyncpg.ConnectionDoesNotExistError():
            return "it closed the connection at once; if the address has a sslcert, it may not accept that certificate"
        case TimeoutError() | PoolTimeout():
            return "it did not answer in time"
        case socket.gaierror():
            return "the host name cannot be resolved"
        case OSError(errno=int(number)):
            return os.strerror(number)
    return " ".join(str(cause).split()) or repr(cause)


def _fault_of_certificate(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the server's certificate."""
    said = error.verify_message.rstrip(".")
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"no certificate in sslrootcert has signed it ({said})"
    return said[:1].lower() + said[1:]


def _address(settings: Settings) -> str:
    url = settings.async_url().set(drivername="postgresql", query={})
    return url.render_as_string(hide_password=True)
