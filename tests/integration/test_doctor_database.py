"""The same for faults of the database: its tables, roles, plans, sessions and connections."""

import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from services.cli.doctor.findings import State, state_of
from services.cli.doctor.of_tables import full
from services.cli.doctor.run import CHECKS
from services.local.embedded.ports import any_free_port
from services.outbox.retention.repository import MONTHS_AHEAD, months_from, partition_name
from services.settings import Settings
from tests.integration.doctored import WORKER, examined, found, healthy, in_production, only, report
from tests.pgbouncer import running_pgbouncer
from tests.roles import APPLICATION, superuser_of


@pytest.fixture
def sql(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a healthy installation."""
    with healthy(settings) as connection:
        yield connection


async def test_a_database_that_is_behind(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("UPDATE alembic_version SET version_num = '0001'")
    behind = await only(settings, "migrations", "problem", "run `waybill migrate` first")
    assert behind.findings[0].command == "waybill migrate"


async def test_a_database_without_tables(settings: Settings, empty_database_url: str) -> None:
    given = settings.model_copy(update={"database_url": empty_database_url})
    outcomes = await examined(given)
    assert ("migrations", "problem") in [finding[:2] for finding in found(outcomes)]
    assert [one.name for one in outcomes if one.state is State.failed] == []


@pytest.mark.parametrize(
    ("revoked", "what"),
    [
        ("INSERT ON orders", "INSERT on orders"),
        ("UPDATE ON accounts", "UPDATE on accounts"),
        ("USAGE ON SEQUENCE outbox_position_seq", "USAGE on outbox_position_seq"),
        ("EXECUTE ON FUNCTION lock_event_log()", "EXECUTE on lock_event_log()"),
    ],
)
async def test_a_missing_grant(settings: Settings, sql: psycopg.Connection[Any], revoked: str, what: str) -> None:
    if "UPDATE" in revoked:
        revoked = "UPDATE (posted) ON accounts"
    sql.execute(f"REVOKE {revoked} FROM {APPLICATION}".encode())
    await only(settings, "grants", "problem", "lacks privileges", what)


@pytest.mark.parametrize("granted", ["DELETE ON entries", "UPDATE (amount) ON entries", "INSERT ON alembic_version"])
async def test_a_grant_too_many(settings: Settings, sql: psycopg.Connection[Any], granted: str) -> None:
    sql.execute(f"GRANT {granted} TO {APPLICATION}".encode())
    await only(settings, "grants", "warning", granted.split()[0])


async def test_a_superuser_as_the_role_of_the_application(
    settings_of_superuser: Settings, sql: psycopg.Connection[Any]
) -> None:
    await only(settings_of_superuser, "role", "problem", "is a superuser")


async def test_a_lost_index_of_the_claim(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("DROP INDEX ix_outbox_ready")
    await only(settings, "claim plan", "problem", "lacks ix_outbox_ready")


async def test_a_planner_that_is_kept_from_the_indexes(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    name = sql.info.dbname
    sql.execute(f'ALTER DATABASE "{name}" SET enable_indexscan = off'.encode())
    sql.execute(f'ALTER DATABASE "{name}" SET enable_indexonlyscan = off'.encode())
    await only(settings, "claim plan", "problem", "the plan of a claim reads the outbox by Seq Scan")


FILL = """
    INSERT INTO outbox (event_id, aggregate, type, version, available_at, waits)
    SELECT gen_random_uuid(), 'thing/' || mod(n, 1000), 'order.placed', 1, CASE WHEN n <= %(waiting)s THEN now() END,
        CASE WHEN n <= %(waiting)s THEN 'retry' END
    FROM generate_series(1, 50000) AS n
"""


@pytest.mark.parametrize("waiting", [0, 100, 50_000])
async def test_a_long_queue_is_claimed_by_the_indexes_whatever_the_statistics(
    settings: Settings, sql: psycopg.Connection[Any], waiting: int
) -> None:
    checks = [check for check in CHECKS if check.name in ("database", "migrations", "claim plan")]
    states = []
    for statement in ("SELECT 1", FILL, "ANALYZE outbox", "DELETE FROM outbox WHERE position > 10", "VACUUM outbox"):
        sql.execute(statement, {"waiting": waiting})
        states += [(await examined(settings, checks=checks))[-1].state]
    assert states == [State.ok] * 5


async def test_another_lost_index(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("DROP INDEX ix_dead_letters_event_id")
    await only(settings, "indexes", "warning", "the index ix_dead_letters_event_id of dead_letters is missing")


async def test_a_trigger_that_is_switched_off(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    trigger = sql.execute(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'entries'::regclass AND NOT tgisinternal"
    ).fetchone()
    assert trigger is not None
    sql.execute(f"ALTER TABLE entries DISABLE TRIGGER {trigger[0]}".encode())
    await only(settings, "protections", "problem", f"the trigger {trigger[0]} of entries is disabled")


async def test_a_session_that_is_idle_in_a_transaction(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    with psycopg.connect(superuser_of(settings), application_name="someone's shell") as idle:
        idle.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        idle.execute("SELECT 1 AS forgotten")
        said = await only(settings, "snapshots", "problem", "someone's shell", "idle in a transaction", "forgotten")
        assert said.findings[0].command == f"psql -c 'SELECT pg_terminate_backend({idle.info.backend_pid})'"
        assert found(await examined(settings, snapshot_limit=3600.0)) == []
        unprivileged = settings.model_copy(update={"admin_database_url": None})
        await only(unprivileged, "snapshots", "note", "1 sessions of other roles")


async def test_a_transaction_that_was_prepared_and_forgotten(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    if sql.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("the given server allows no prepared transactions")
    with psycopg.connect(superuser_of(settings)) as preparing:
        preparing.execute("CREATE TABLE half (a int)")
        preparing.execute("PREPARE TRANSACTION 'forgotten'")
    try:
        await only(settings, "snapshots", "problem", "the transaction 'forgotten'", "has been prepared for")
    finally:
        sql.execute("ROLLBACK PREPARED 'forgotten'")


async def test_a_replication_slot_that_no_one_reads(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("SELECT pg_create_physical_replication_slot('of_a_lost_standby', true)")
    try:
        await only(settings, "snapshots", "warning", "no one reads the replication slot of_a_lost_standby")
    finally:
        sql.execute("SELECT pg_drop_replication_slot('of_a_lost_standby')")


async def test_an_outbox_that_is_never_vacuumed(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    await only(settings, "autovacuum", "problem", "switched off for the table outbox")


async def test_pools_that_are_larger_than_the_server_allows(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    many = settings.model_copy(update={"api_processes": 100})
    await only(many, "connections", "problem", "101 processes x 15 connections")


async def test_more_workers_than_the_settings_count(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    for _ in range(30):
        sql.execute(WORKER, [report()])
    said = await only(settings, "connections", "problem", "32 processes x 15 connections")
    assert "31 workers are alive: set WAYBILL_WORKER_PROCESSES" in said.findings[0].do


async def test_another_default_isolation_level(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(f"ALTER DATABASE \"{sql.info.dbname}\" SET default_transaction_isolation = 'repeatable read'".encode())
    await only(settings, "isolation", "warning", "the database's default isolation level is repeatable read")


async def test_a_database_that_is_away(settings: Settings) -> None:
    given = settings.model_copy(update={"database_url": f"postgresql://x:y@127.0.0.1:{any_free_port()}/waybill"})
    outcomes = await examined(given)
    ((name, severity, what),) = found(outcomes)
    assert (name, severity) == ("database", "problem")
    assert "cannot connect to the database at postgresql://x:***@127.0.0.1" in what
    assert {one.saw for one in outcomes if one.state is State.skipped} >= {"because of `database`"}


async def test_a_database_that_accepts_connections_and_says_nothing(settings: Settings) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"postgresql://x:y@127.0.0.1:{silent.getsockname()[1]}/waybill"
        given = settings.model_copy(update={"database_url": address, "database_pool_timeout": 0.5})
        ((name, severity, what),) = found(await examined(given))
    assert (name, severity) == ("database", "problem")
    assert what.endswith("it did not answer in time")


async def test_a_database_that_refuses_writes(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(f'ALTER DATABASE "{sql.info.dbname}" SET default_transaction_read_only = on'.encode())
    await only(settings, "database", "problem", "refuses writes (default_transaction_read_only)")


async def test_a_database_that_may_lose_what_it_has_acknowledged(
    settings: Settings, sql: psycopg.Connection[Any]
) -> None:
    checks = [check for check in CHECKS if check.name in ("database", "durability")]
    sql.execute(f'ALTER DATABASE "{sql.info.dbname}" SET synchronous_commit = off'.encode())
    await only(in_production(settings), "durability", "problem", "synchronous_commit", checks=checks)
    assert found(await examined(settings, checks=checks)) == []


async def test_a_month_without_a_partition(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    month = months_from(datetime.now(UTC).date(), MONTHS_AHEAD)[-1]
    sql.execute(f"DROP TABLE {partition_name(*month)}".encode())
    await only(settings, "partitions", "warning", f"no partition for {month[0]}-{month[1]:02d}")
    this = months_from(datetime.now(UTC).date(), 0)[0]
    sql.execute(f"DROP TABLE {partition_name(*this)}".encode())
    severities = [severity for name, severity, _ in found(await examined(settings)) if name == "partitions"]
    assert severities == ["problem", "warning"]


async def test_a_database_on_another_host_without_tls(
    settings: Settings, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = socket.getaddrinfo

    def resolve(host: Any, *more: Any, **options: Any) -> Any:
        return plain("127.0.0.1" if host == "db.example.net" else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    elsewhere = settings.database_url.replace("127.0.0.1", "db.example.net").replace("localhost", "db.example.net")
    given = in_production(settings).model_copy(update={"database_url": elsewhere})
    await only(given, "tls", "problem", "WAYBILL_DATABASE_URL sends data to db.example.net unencrypted")


async def test_a_pooler_that_gives_out_too_few_connections(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    migrating = {"migration_database_url": superuser_of(settings)}
    with running_pgbouncer(settings.database_url, default_pool_size="6") as url:
        through = settings.model_copy(update={"database_url": url, **migrating})
        outcomes = await examined(through)
        assert found(outcomes) == []
        assert [one.saw for one in outcomes if one.name == "pooler"] == ["in transaction mode"]
    with running_pgbouncer(settings.database_url, default_pool_size="2") as url:
        through = settings.model_copy(update={"database_url": url, **migrating})
        await only(through, "pooler", "problem", "ran 2 of 3 transactions at the same time")


async def test_a_pooler_through_which_migrations_would_go(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    with running_pgbouncer(settings.database_url, default_pool_size="6") as url:
        through = settings.model_copy(update={"database_url": url})
        await only(through, "pooler", "warning", "WAYBILL_MIGRATION_DATABASE_URL is not set, or leads to the pooler")


async def test_a_pooler_in_session_mode(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    with running_pgbouncer(settings.database_url, default_pool_size="9", pool_mode="session") as url:
        through = settings.model_copy(update={"database_url": url, "migration_database_url": superuser_of(settings)})
        await only(through, "pooler", "note", "in session mode")


async def test_an_analytics_database_without_tables(
    settings: Settings, sql: psycopg.Connection[Any], empty_database_url: str
) -> None:
    given = settings.model_copy(update={"analytics_url": empty_database_url})
    await only(given, "analytics", "problem", "the analytics database has no tables")


async def test_a_replica_that_is_away(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    away = settings.database_url.rpartition(":")[0] + f":{any_free_port()}/waybill"
    given = settings.model_copy(update={"database_replica_url": away})
    await only(given, "replica", "warning", "the read replica cannot be read: unreachable")


def test_a_disk_is_judged_by_what_is_free() -> None:
    gib = 2**30
    assert [state_of(full(free, 100 * gib)) for free in (50 * gib, 9 * gib, gib // 2)] == [
        State.ok,
        State.warning,
        State.problem,
    ]
