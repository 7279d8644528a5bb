"""How migrations run: offline, one at a time, in tenants' schemas, on given connections; and what they refuse."""

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from migrations.config import alembic_config
from services.database import Limits
from services.models import metadata
from services.outbox.models import Xid8
from tests.migrations.schema import downgrade, read_schema, revision_of, upgrade

PROJECT = Path(__file__).parents[2]
HEAD = ScriptDirectory.from_config(alembic_config()).get_current_head() or ""
LOCK = int.from_bytes(b"waybill!", "big")
NOBODY_LISTENS = "postgresql://nobody@127.0.0.1:1/nothing"


def sql_of(revisions: str, *, down: bool = False, schema: str = "public") -> str:
    """What `--sql` prints."""
    config = alembic_config(NOBODY_LISTENS, schema)
    config.output_buffer = io.StringIO()
    (command.downgrade if down else command.upgrade)(config, revisions, sql=True)
    return config.output_buffer.getvalue()


def run_script(connection: "psycopg.Connection[tuple[object, ...]]", script: str) -> None:
    """Send the statements one by one, as `psql` does; sent together, they would be one transaction."""
    for statement in script.split(";\n\n"):
        connection.execute(statement.encode())


@contextmanager
def alembic_process(url: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the `alembic` command line in its own process, as a release step does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=PROJECT,
        env={**os.environ, "WAYBILL_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def advisory_locks(connection: "psycopg.Connection[tuple[object, ...]]") -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


def wait_until_it_asks_for_the_lock(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        asking = connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'waybill-migrate' AND query ~ 'advisory_lock|pg_sleep'"
        )
        if asking.rowcount:
            return
        time.sleep(0.05)
    raise TimeoutError("the upgrade never asked for the lock")


def wait_until_an_index_waits(url: str) -> None:
    deadline = time.monotonic() + 30
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            waiting = connection.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event = 'virtualxid'"
            )
            if waiting.rowcount:
                return
            time.sleep(0.05)
    raise TimeoutError("no index ever waited for a snapshot")


def test_offline_sql_makes_the_same_schema_without_a_connection(database_url: str, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        run_script(connection, sql_of("head"))
    assert read_schema(empty_database_url) == read_schema(database_url)
    assert revision_of(empty_database_url) == revision_of(database_url)


def test_offline_sql_undoes_the_whole_history(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        run_script(connection, sql_of("head:base", down=True))
    assert read_schema(database_url).tables == set()


def test_offline_sql_of_a_tenant_stays_in_its_schema(empty_database_url: str, database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        run_script(connection, sql_of("head", schema="tenant_a"))
    assert read_schema(empty_database_url, "tenant_a") == read_schema(database_url)
    assert read_schema(empty_database_url).tables == set()


def test_offline_sql_limits_waiting_for_locks_in_every_transaction_with_ddl() -> None:
    transactions = re.findall(r"^BEGIN;$(.*?)^COMMIT;$", sql_of("head"), flags=re.MULTILINE | re.DOTALL)
    with_ddl = [body for body in transactions if re.search(r"^(ALTER|CREATE INDEX|DROP)", body, flags=re.MULTILINE)]
    assert len(with_ddl) >= 3
    for body in with_ddl:
        assert "SET LOCAL lock_timeout" in body


def test_two_upgrades_at_once_run_one_after_the_other(empty_database_url: str) -> None:
    with (
        psycopg.connect(empty_database_url, autocommit=True) as connection,
        alembic_process(empty_database_url, "upgrade", "head") as first,
        alembic_process(empty_database_url, "upgrade", "head") as second,
    ):
        output = first.communicate(timeout=60)[0] + second.communicate(timeout=60)[0]
        assert (first.returncode, second.returncode) == (0, 0), output
        assert output.count("Running upgrade  -> 0001") == 1
        assert advisory_locks(connection) == 0


def test_an_upgrade_waits_for_another_run_without_blocking_anyone(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as other_run:
        other_run.execute("CREATE TABLE busy (id int)")
        other_run.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with alembic_process(empty_database_url, "upgrade", "head") as waiting:
            wait_until_it_asks_for_the_lock(other_run)
            # It waits for every older snapshot: a waiter in one long statement would never let it end.
            other_run.execute("SET statement_timeout = '5s'")
            other_run.execute("CREATE INDEX CONCURRENTLY ON busy (id)")
            assert read_schema(empty_database_url).tables == {"busy"}
            other_run.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
            output = waiting.communicate(timeout=60)[0]
        assert waiting.returncode == 0, output
        assert output.count("waiting for another migration run to finish") == 1
    assert "orders" in read_schema(empty_database_url).tables


def test_an_index_waits_for_an_old_snapshot_for_longer_than_requests_and_jobs_wait(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Limits.of_migrations().lock >= 100 * Limits.of_jobs().lock
    upgrade(empty_database_url, "0009")
    short = Limits(statement=0.5, lock=0.5)
    monkeypatch.setattr(Limits, "of_requests", lambda _: short)
    monkeypatch.setattr(Limits, "of_jobs", lambda: short)
    with psycopg.connect(empty_database_url) as report, ThreadPoolExecutor() as threads:
        report.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        report.execute("SELECT count(*) FROM orders")
        migrating = threads.submit(upgrade, empty_database_url, "0010")
        try:
            wait_until_an_index_waits(empty_database_url)
            time.sleep(1.5)
            assert not migrating.done(), "it gave up"
        finally:
            report.rollback()
            migrating.result(timeout=60)
    assert revision_of(empty_database_url) == ["0010"]
    assert all(valid for *_, valid in read_schema(empty_database_url).indexes)


def test_read_only_commands_do_not_wait_for_a_run(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as other_run:
        other_run.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        started = time.monotonic()
        command.current(alembic_config(database_url))
        command.check(alembic_config(database_url))
        assert time.monotonic() - started < 10


def test_a_step_that_fails_leaves_nothing_behind_and_frees_the_lock(empty_database_url: str) -> None:
    engine = create_engine(make_url(empty_database_url).set(drivername="postgresql+psycopg"))
    config = alembic_config(empty_database_url)
    config.attributes["engine"] = engine
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE idempotency_keys (in_the_way int)")
        with pytest.raises(DBAPIError, match="already exists"):
            command.upgrade(config, "head")
        # The engine's pool still holds the session that had the lock.
        assert advisory_locks(connection) == 0
        assert read_schema(empty_database_url).tables == {"idempotency_keys"}
        connection.execute("DROP TABLE idempotency_keys")
    command.upgrade(config, "head")
    engine.dispose()


def test_tenants_can_share_one_database(empty_database_url: str) -> None:
    url = empty_database_url
    upgrade(url)
    upgrade(url, schema="tenant_a")
    upgrade(url, "0001", schema="tenant_b")
    public = read_schema(url)
    assert read_schema(url, "tenant_a") == public
    assert revision_of(url) == revision_of(url, "tenant_a") == [HEAD]
    assert revision_of(url, "tenant_b") == ["0001"]

    downgrade(url, "base", schema="tenant_a")
    assert read_schema(url, "tenant_a").tables == set()
    assert read_schema(url) == public

    upgrade(url, schema="tenant_b")
    assert read_schema(url, "tenant_b") == public
    command.check(alembic_config(url, "tenant_b"))


def test_a_tenants_rows_are_its_own(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    upgrade(empty_database_url, schema="tenant_a")
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO tenant_a.categories (name) VALUES ('only here')")
        elsewhere = connection.execute("SELECT count(*) FROM public.categories").fetchone()
        partitions = connection.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tenant_a.events'::regclass"
        ).fetchone()
    assert elsewhere == (0,)
    assert partitions == (5,)


def test_schema_is_an_argument_of_the_command_line(empty_database_url: str) -> None:
    with alembic_process(empty_database_url, "-x", "schema=tenant_c", "upgrade", "head") as process:
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert revision_of(empty_database_url, "tenant_c") == [HEAD]
    assert read_schema(empty_database_url).tables == set()


@pytest.mark.parametrize("name", ["", "Tenant", "a b", "a;drop table users", 'a"b', "1a", "a" * 64, "a\n"])
def test_a_schemas_name_is_validated(name: str) -> None:
    with pytest.raises(CommandError, match="WAYBILL_DATABASE_SCHEMA"):
        upgrade(NOBODY_LISTENS, schema=name)


@pytest.mark.parametrize("name", ["pg_catalog", "pg_temp_1", "information_schema"])
def test_postgresqls_own_schemas_are_refused(name: str) -> None:
    with pytest.raises(CommandError, match="belongs to PostgreSQL"):
        upgrade(NOBODY_LISTENS, schema=name)


def test_a_schema_may_be_named_like_a_keyword(empty_database_url: str) -> None:
    upgrade(empty_database_url, schema="user")
    assert read_schema(empty_database_url).tables == set()
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute('SELECT count(*) FROM "user".users').fetchone() == (0,)


def test_a_misspelt_argument_is_refused_instead_of_migrating_public(empty_database_url: str) -> None:
    with alembic_process(empty_database_url, "-x", "shema=tenant_a", "upgrade", "head") as process:
        output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "known: schema=NAME" in output
    assert read_schema(empty_database_url).tables == set()


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(CommandError, match=re.escape("user:***@127.0.0.1:1/nothing")) as refused:
        upgrade("postgresql://user:secret@127.0.0.1:1/nothing")
    assert "secret" not in str(refused.value)


def config_with(name: str, given: object, schema: str | None = None) -> Config:
    config = alembic_config(NOBODY_LISTENS, schema)
    config.attributes[name] = given
    return config


def test_a_given_engine_is_used(empty_database_url: str) -> None:
    engine = create_engine(make_url(empty_database_url).set(drivername="postgresql+psycopg"))
    command.upgrade(config_with("engine", engine), "head")
    engine.dispose()
    assert revision_of(empty_database_url) == [HEAD]


async def test_a_given_async_engine_is_used_and_usable_afterwards(empty_database_url: str) -> None:
    engine = create_async_engine(make_url(empty_database_url).set(drivername="postgresql+asyncpg"))
    await asyncio.to_thread(command.upgrade, config_with("engine", engine), "head")
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD
    await engine.dispose()


async def test_a_given_connection_is_used_and_left_as_it_was(empty_database_url: str) -> None:
    engine = create_async_engine(make_url(empty_database_url).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        path = await connection.scalar(text("SELECT current_setting('search_path')"))
        await connection.commit()
        await connection.run_sync(
            lambda sync: command.upgrade(config_with("connection", sync, schema="tenant_a"), "head")
        )
        assert not connection.in_transaction()
        assert await connection.scalar(text("SELECT current_setting('search_path')")) == path
        assert connection.dialect.default_schema_name == "public"
    await engine.dispose()
    assert revision_of(empty_database_url, "tenant_a") == [HEAD]


def test_a_given_connection_in_a_transaction_is_refused(empty_database_url: str) -> None:
    engine = create_engine(make_url(empty_database_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection, pytest.raises(CommandError, match="in a transaction"):
        command.upgrade(config_with("connection", connection), "head")
    engine.dispose()


def test_anything_else_given_is_refused() -> None:
    with pytest.raises(CommandError, match="not str"):
        command.upgrade(config_with("connection", "postgresql://"), "head")


def test_configuration_finds_the_scripts_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    location = alembic_config().get_main_option("script_location")
    assert location is not None
    assert location.startswith("/")


def test_a_new_revision_is_written_from_the_difference_and_can_be_run(database_url: str, tmp_path: Path) -> None:
    scripts = shutil.copytree(PROJECT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("*.pyc"))
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE events DROP COLUMN transaction_id")
        connection.execute("ALTER TABLE users DROP COLUMN full_name CASCADE")
    config = alembic_config(database_url)
    config.set_main_option("script_location", str(scripts))
    command.revision(config, "What is missing", autogenerate=True)

    (file,) = (scripts / "versions").glob(f"{int(HEAD[:4]) + 1:04d}*_what_is_missing.py")
    written = file.read_text()
    assert "sqlmodel" not in written
    assert "sa.Column('full_name', sa.String(length=200), nullable=False)" in written
    assert "# ###" not in written
    assert "from migrations.column_types import Xid8\n" in written
    assert written.count("SET LOCAL lock_timeout = '5s'") == 2
    command.upgrade(config, "head")
    command.check(config)


def test_a_new_revision_does_not_import_a_type_from_the_services(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = shutil.copytree(PROJECT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("*.pyc"))
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE events DROP COLUMN transaction_id")
    config = alembic_config(database_url)
    config.set_main_option("script_location", str(scripts))
    newer = type("Newer", (Xid8,), {"__module__": Xid8.__module__})
    monkeypatch.setattr(metadata.tables["events"].c.transaction_id, "type", newer())
    with pytest.raises(CommandError, match=r"copy it to migrations/column_types\.py"):
        command.revision(config, "What is missing", autogenerate=True)
