"""The database roles: what the application and the reader may not do, and that grants hold for every table."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors, sql

from services.models import metadata
from services.privileges import ANALYTICS, FUNCTIONS, TABLES
from services.reports.models import metadata as analytics_metadata
from tests.roles import APPLICATION, OWNER, READER, as_role

Connection = psycopg.Connection[tuple[object, ...]]

APPEND_ONLY = (
    "audit_log", "entries", "events", "order_transitions", "outbox_actions", "refund_lines", "refunds",
    "stock_movements", "transfers", "unapproved_movements",
)  # fmt: skip

OF_THE_OWNER = {
    "switch triggers off for the session": "SET session_replication_role = replica",
    "disable a trigger": "ALTER TABLE entries DISABLE TRIGGER entries_keep",
    "disable all triggers": "ALTER TABLE entries DISABLE TRIGGER ALL",
    "drop a trigger": "DROP TRIGGER entries_keep ON entries",
    "replace the trigger's function": "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RETURN NEW; END $$",
    "create a table": "CREATE TABLE mine (id int)",
    "create a temporary table": "CREATE TEMPORARY TABLE events (id uuid)",
    "create a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "create a schema": "CREATE SCHEMA mine",
    "create an index": "CREATE INDEX mine ON entries (amount)",
    "change a table": "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_available",
    "drop a table": "DROP TABLE entries CASCADE",
    "detach a month": "ALTER TABLE events DETACH PARTITION events_default",
    "change a sequence": "SELECT setval('events_position_seq', 1)",
    "change the version": "UPDATE alembic_version SET version_num = 'x'",
    "change the origin of the log": "UPDATE log_origin SET system_identifier = 1",
    "become the owner": f"SET ROLE {OWNER}",
    "act as the owner": f"SET SESSION AUTHORIZATION {OWNER}",
    "grant a role": f"GRANT {OWNER} TO {APPLICATION}",
    "become a superuser": f"ALTER ROLE {APPLICATION} SUPERUSER",
    "change another role": f"ALTER ROLE {OWNER} PASSWORD 'mine'",
    "create a role": "CREATE ROLE mine",
    "change a setting of the server": "ALTER SYSTEM SET fsync = off",
    "change a setting of the database": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64',"
    " current_database()); END $$",
    "run a program": "COPY (SELECT 1) TO PROGRAM 'cat'",
    "run a program for its output": "COPY categories (name) FROM PROGRAM 'id'",
    "write a file": "COPY (SELECT 1) TO '/tmp/mine'",
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "list a folder": "SELECT pg_ls_dir('/')",
    "import a file": "SELECT lo_import('/etc/passwd')",
    "read the roles' passwords": "SELECT * FROM pg_authid",
    "load a library": "LOAD 'auto_explain'",
    "install an extension": "CREATE EXTENSION file_fdw",
    "lock a table": "DO $$ BEGIN LOCK TABLE entries IN ACCESS EXCLUSIVE MODE; END $$",
    "change a whole transfer": "UPDATE transfers SET amount = 1",
    "change a whole account": "UPDATE accounts SET user_id = NULL",
    "change a price that was paid": "UPDATE order_items SET unit_price = 1",
    "delete a user": "DELETE FROM users",
    "delete an order": "DELETE FROM orders",
    "delete an account": "DELETE FROM accounts",
}
"""Statements that only the owner or a superuser may run."""

SECRETS = (
    "SELECT hashed_password FROM users",
    "SELECT * FROM users",
    "SELECT users FROM users",
    "SELECT id FROM users WHERE hashed_password LIKE 'x%'",
    "SELECT id FROM users ORDER BY hashed_password",
    "SELECT hash FROM api_keys",
    "SELECT hash FROM recovery_codes",
    "SELECT hash FROM refresh_tokens",
    "SELECT hash FROM one_time_tokens",
    "SELECT sealed FROM totp_secrets",
    "SELECT hashed_password FROM unverified_emails",
    "SELECT headers FROM idempotency_keys",
    "TABLE users",
)


def connected(role: str, url: str) -> Connection:
    return psycopg.connect(as_role(role, url), autocommit=True)


@pytest.fixture
def application(database_url: str) -> Iterator[Connection]:
    with connected(APPLICATION, database_url) as connection:
        yield connection


@pytest.fixture
def reader(database_url: str) -> Iterator[Connection]:
    with connected(READER, database_url) as connection:
        yield connection


@pytest.fixture
def superuser(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("what", OF_THE_OWNER)
def test_the_application_cannot(application: Connection, what: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        application.execute(OF_THE_OWNER[what].encode())


@pytest.mark.parametrize("what", OF_THE_OWNER)
def test_the_reader_cannot(reader: Connection, what: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(OF_THE_OWNER[what].encode())


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_the_application_cannot_change_what_is_append_only(application: Connection, table: str) -> None:
    column = {"transfers": "amount", "audit_log": "actor"}.get(table) or a_column(application, table)
    for statement in (f"UPDATE {table} SET {column} = NULL", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(errors.InsufficientPrivilege):
            application.execute(statement.encode())
    application.execute(f"SELECT count(*) FROM {table}".encode())


def a_column(connection: Connection, table: str) -> str:
    found = connection.execute(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum DESC LIMIT 1", [table]
    ).fetchone()  # fmt: skip
    assert found is not None
    return str(found[0])


def test_every_table_has_its_privileges() -> None:
    """A table without a line would be out of reach for the application."""
    assert {table.name for table in metadata.tables.values()} | {"alembic_version"} == TABLES.keys()
    assert {table.name for table in analytics_metadata.tables.values()} | {"alembic_version"} == ANALYTICS.keys()
    for models, declared in ((metadata, TABLES), (analytics_metadata, ANALYTICS)):
        for table in models.tables.values():
            named = {*declared[table.name].update, *declared[table.name].secret} - {"*"}
            assert named <= {column.name for column in table.columns}, table.name


def test_no_table_can_be_truncated_or_be_given_triggers(application: Connection, reader: Connection) -> None:
    found = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    for connection, privileges in ((application, "TRUNCATE, TRIGGER"), (reader, "INSERT, UPDATE, DELETE, TRUNCATE")):
        able = connection.execute(f"{found} AND has_table_privilege(oid, '{privileges}')".encode()).fetchall()
        assert able == []
    # The reader can see each table that is not secret as a whole, and so the statement looks at all of them.
    assert len(reader.execute(found.encode()).fetchall()) > len(TABLES)


@pytest.mark.parametrize("statement", SECRETS)
def test_the_reader_sees_no_secrets(reader: Connection, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(statement.encode())


def test_the_reader_sees_the_rest(reader: Connection) -> None:
    for table, of_table in TABLES.items():
        if not of_table.secret:
            reader.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
    reader.execute("SELECT id, email, full_name, role FROM users")


def test_a_new_month_can_be_read_by_those_who_read_the_log_and_by_no_one_else(
    application: Connection, reader: Connection, superuser: Connection
) -> None:
    application.execute("SELECT add_event_month(2021, 3)")
    for connection in (application, reader):
        assert connection.execute("SELECT count(*) FROM events_2021_03").fetchone() == (0,)
    with pytest.raises(errors.InsufficientPrivilege):
        application.execute("DELETE FROM events_2021_03")
    owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'events_2021_03'"
    assert superuser.execute(owner.encode()).fetchone() == (OWNER,)
    application.execute("SELECT drop_event_month('events_2021_03')")
    with pytest.raises(errors.UndefinedTable):
        application.execute("SELECT FROM events_2021_03")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("events_default", "is not a month of the event log"),
        ("entries", "is not a partition of the event log"),
        ("events_2021_03; DROP TABLE entries", "is not a partition of the event log"),
    ],
)
def test_the_application_drops_nothing_but_months(application: Connection, name: str, why: str) -> None:
    with pytest.raises((errors.RestrictViolation, errors.UndefinedTable), match=why):
        application.execute("SELECT drop_event_month(%s)", [name])


def test_the_application_drops_no_month_that_has_not_ended(application: Connection) -> None:
    (month,) = application.execute("SELECT to_char(now(), '\"events_\"YYYY_MM')").fetchone() or ("",)
    with pytest.raises(errors.RestrictViolation, match=f"{month} has not ended"):
        application.execute("SELECT drop_event_month(%s)", [month])


@pytest.mark.parametrize(
    "need",
    [
        "INSERT INTO outbox (event_id, aggregate, type, version)"
        " SELECT id, aggregate, type, version FROM events_2021_03",
        "INSERT INTO log_consumers (name, seen) VALUES ('a', '3:3:')",
    ],
    ids=["an event that waits", "a consumer that has not read it"],
)
def test_the_application_drops_no_month_that_is_needed(
    application: Connection, superuser: Connection, need: str
) -> None:
    application.execute("SELECT add_event_month(2021, 3)")
    application.execute(
        "INSERT INTO events (id, type, version, aggregate, payload)"
        " VALUES ('01784d4e-2c00-7000-8000-000000000000', 'a.b', 1, 'a/1', '{}')"
    )
    superuser.execute(need.encode())
    with pytest.raises(errors.RestrictViolation, match="something still needs events_2021_03"):
        application.execute("SELECT drop_event_month('events_2021_03')")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_reader_cannot_call_what_runs_with_the_rights_of_the_owner(reader: Connection, function: str) -> None:
    name = function.partition("(")[0]
    arguments = {"add_event_month": "2021, 3", "lock_event_log": ""}.get(name, "'events_default'")
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute(f"SELECT {name}({arguments})".encode())


def test_what_runs_with_the_rights_of_the_owner_uses_its_own_tables(superuser: Connection) -> None:
    """Whatever the caller's search path is: each such function has its own, with temporary tables last."""
    found = superuser.execute(
        "SELECT proname, proconfig FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    ).fetchall()
    assert {name for name, _ in found} == {function.partition("(")[0] for function in FUNCTIONS}
    assert all(config == ["search_path=public, pg_temp"] for _, config in found)
