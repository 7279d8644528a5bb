"""Setting the database roles up: taking over what one role owned, granting again, and what is said otherwise."""

import asyncio
from collections.abc import Iterator
from io import StringIO
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError as AlembicError
from psycopg import errors, sql
from sqlalchemy import make_url

from migrations.config import alembic_config
from services.cli.console import CommandError
from services.cli.database_roles import Roles, prepare, roles_of
from services.database import close, make_engine
from services.settings import Settings
from services.startup import SchemaNotReady, check_role, check_schema
from tests.conftest import Administrator, settings_for
from tests.roles import APPLICATION, OWNER, READER, as_role
from tests.roles import roles_of as roles_of_tests

Connection = psycopg.Connection[tuple[object, ...]]

OWNERS = """
    SELECT DISTINCT relowner::regrole::text FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S', 'i', 'I')
        AND relname NOT LIKE 'somebody%'
    UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""


def migrate(url: str, schema: str | None = None, application: str = APPLICATION) -> None:
    config = alembic_config(as_role(OWNER, url), schema, application=application, reader=READER)
    command.upgrade(config, "head")


@pytest.fixture
def superuser(empty_database_url: str) -> Iterator[Connection]:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


@pytest.mark.usefixtures("template_database")  # which makes the roles
def test_what_one_role_owned_is_taken_over(empty_database_url: str, superuser: Connection) -> None:
    command.upgrade(alembic_config(empty_database_url), "head")
    # Of somebody else, in the same schema.
    superuser.execute("CREATE TABLE somebody (id int GENERATED ALWAYS AS IDENTITY)")
    superuser.execute(f"ALTER TABLE somebody OWNER TO {READER}")
    for _ in range(2):
        prepare(make_url(empty_database_url), roles_of_tests(empty_database_url), "public")
        migrate(empty_database_url)
    assert superuser.execute(OWNERS.encode()).fetchall() == [(OWNER,)]
    found = superuser.execute("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'somebody'").fetchone()
    assert found == (READER,)
    with psycopg.connect(as_role(APPLICATION, empty_database_url), autocommit=True) as application:
        application.execute("SELECT count(*) FROM entries")
        application.execute("SELECT add_event_month(2021, 3)")
        with pytest.raises(errors.InsufficientPrivilege):
            application.execute("ALTER TABLE entries DISABLE TRIGGER ALL")


def test_migrating_again_restores_the_privileges(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as superuser:
        superuser.execute(f"REVOKE SELECT ON users FROM {APPLICATION}")
        superuser.execute(f"GRANT TRUNCATE, DELETE ON entries TO {APPLICATION}")
        superuser.execute(f"GRANT SELECT ON users TO {READER}")
        migrate(database_url)
        may = "SELECT has_table_privilege(%s, %s, %s)"
        for role, table, privilege, expected in (
            (APPLICATION, "users", "SELECT", True),
            (APPLICATION, "entries", "TRUNCATE", False),
            (APPLICATION, "entries", "DELETE", False),
            (READER, "users", "SELECT", False),
        ):
            assert superuser.execute(may, [role, table, privilege]).fetchone() == (expected,), (role, table, privilege)


def test_a_role_that_does_not_exist_is_named(database_url: str) -> None:
    with pytest.raises(AlembicError, match=r'"nobody" does not exist.*run `waybill database-roles`'):
        migrate(database_url, application="nobody")


def test_tables_of_another_owner_are_named(empty_database_url: str, superuser: Connection) -> None:
    prepare(make_url(empty_database_url), roles_of_tests(empty_database_url), "public")
    migrate(empty_database_url)
    superuser.execute("ALTER TABLE orders OWNER TO CURRENT_USER")
    with pytest.raises(AlembicError, match=r"permission denied for table orders.*run `waybill database-roles`"):
        migrate(empty_database_url)


def test_the_statements_that_are_printed_grant_too(capsys: pytest.CaptureFixture[str], database_url: str) -> None:
    config = alembic_config(as_role(OWNER, database_url), application=APPLICATION, reader=READER)
    config.output_buffer = StringIO()
    command.upgrade(config, "0034pkvn:head", sql=True)
    printed = config.output_buffer.getvalue()
    (block, *_) = printed.split("DO $grants$")[1:]
    assert APPLICATION in block
    with psycopg.connect(database_url, autocommit=True) as superuser:
        superuser.execute(f"REVOKE ALL ON orders FROM {APPLICATION}")
        superuser.execute(("DO $grants$" + block.split("END $grants$")[0] + "END $grants$").encode())
        assert superuser.execute("SELECT has_table_privilege(%s, 'orders', 'INSERT')", [APPLICATION]).fetchone() == (
            True,
        )


def test_each_tenant_can_have_a_role_that_sees_no_other_tenant(
    administrator: Administrator, empty_database_url: str
) -> None:
    names = {schema: f"tenant_{uuid4().hex}" for schema in ("shop_a", "shop_b")}
    try:
        for schema, name in names.items():
            url = make_url(empty_database_url).set(username=name, password="x")
            roles = Roles(make_url(as_role(OWNER, empty_database_url)), url)
            prepare(make_url(empty_database_url), roles, schema)
            migrate(empty_database_url, schema, application=name)
        url = make_url(empty_database_url).set(username=names["shop_a"], password="x")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as tenant:
            assert tenant.execute("SELECT count(*) FROM shop_a.users").fetchone() == (0,)
            tenant.execute("SET search_path = shop_b")
            tenant.execute("SELECT shop_a.add_event_month(2021, 3)")
            assert tenant.execute("SELECT to_regclass('shop_a.events_2021_03')").fetchone() != (None,)
            with pytest.raises(errors.InsufficientPrivilege):
                tenant.execute("SELECT count(*) FROM shop_b.users")
            with pytest.raises(errors.InsufficientPrivilege):
                tenant.execute("SELECT shop_b.add_event_month(2021, 3)")
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            for name in names.values():
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_superuser_is_not_taken_for_the_application(empty_database_url: str) -> None:
    roles = Roles(make_url(as_role(OWNER, empty_database_url)), make_url(empty_database_url))
    with pytest.raises(CommandError, match="may do more than it should, such as a superuser"):
        prepare(make_url(empty_database_url), roles, "public")


def test_the_owner_and_the_application_are_two(settings: Settings) -> None:
    same = settings.model_copy(update={"migration_database_url": settings.database_url})
    with pytest.raises(CommandError, match=f"WAYBILL_MIGRATION_DATABASE_URL needs a different role from {APPLICATION}"):
        roles_of(same)


def warnings_of(url: str, caplog: pytest.LogCaptureFixture) -> str:
    async def check() -> None:
        settings = settings_for(url, "redis://127.0.0.1:1/0")
        engine = make_engine(settings, "test", pool_size=1)
        try:
            await check_role(engine, settings)
        finally:
            await close(engine)

    caplog.clear()
    asyncio.run(check())
    return caplog.text


def test_a_process_with_too_many_rights_warns(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert "is a superuser" in warnings_of(database_url, caplog)
    assert f"the database role {OWNER} owns the tables" in warnings_of(as_role(OWNER, database_url), caplog)
    for role in (APPLICATION, READER):
        assert warnings_of(as_role(role, database_url), caplog) == ""


@pytest.mark.parametrize(
    "revoked", ["SELECT ON alembic_version", "USAGE ON SCHEMA tenant"], ids=["the table", "the schema"]
)
def test_a_role_without_grants_is_told_to_migrate(empty_database_url: str, revoked: str) -> None:
    schema = "tenant" if "SCHEMA" in revoked else "public"
    prepare(make_url(empty_database_url), roles_of_tests(empty_database_url), schema)
    migrate(empty_database_url, schema)
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        superuser.execute(f"REVOKE {revoked} FROM {APPLICATION}".encode())
    settings = settings_for(as_role(APPLICATION, empty_database_url), "redis://127.0.0.1:1/0")
    settings = settings.model_copy(update={"database_schema": schema})

    async def check() -> None:
        engine = make_engine(settings, "test", pool_size=1)
        try:
            await check_schema(engine, settings)
        finally:
            await close(engine)

    with pytest.raises(SchemaNotReady, match=f"the database role {APPLICATION} may not use the tables in the schema"):
        asyncio.run(check())
