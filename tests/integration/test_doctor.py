"""`waybill doctor` finds each planted fault on real servers, and nothing else; a healthy installation has none."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner, Result

from services.cli.doctor.findings import Checked, State, state_of
from services.cli.doctor.installation import Installation
from services.cli.doctor.of_redis import judge
from services.cli.doctor.of_tables import full
from services.cli.doctor.run import CHECKS, Check, examine
from services.cli.main import app
from services.local.embedded.ports import any_free_port
from services.outbox.retention.repository import MONTHS_AHEAD, months_from, partition_name
from services.settings import Settings
from tests.integration.doctored import JOB, WORKER, examined, found, in_production, only, report
from tests.pgbouncer import running_pgbouncer
from tests.roles import APPLICATION, superuser_of


@pytest.fixture
def sql(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a healthy installation."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(WORKER, [report()])
        connection.execute(JOB)
        yield connection


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Redis, whose limits are put back afterwards."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        before = client.config_get("maxmemory*")
        yield client
        for name in ("maxmemory", "maxmemory-policy"):
            client.config_set(name, before[name])


async def test_a_healthy_installation_has_no_findings(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    outcomes = await examined(settings, checks=CHECKS)
    assert found(outcomes) == []
    assert {one.name: one.state for one in outcomes} == {check.name: State.ok for check in CHECKS}


async def test_a_healthy_installation_in_production_has_none_either(
    settings: Settings, sql: psycopg.Connection[Any]
) -> None:
    assert found(await examined(in_production(settings))) == []


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


async def test_a_redis_that_evicts(settings: Settings, sql: psycopg.Connection[Any], redis: Redis) -> None:
    redis.config_set("maxmemory", "200mb")
    redis.config_set("maxmemory-policy", "allkeys-lru")
    await only(settings, "redis", "warning", "maxmemory-policy allkeys-lru")


async def test_a_redis_that_is_away(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{any_free_port()}/0"})
    await only(away, "redis", "problem", "Redis does not answer")


async def test_a_redis_that_accepts_connections_and_says_nothing(
    settings: Settings, sql: psycopg.Connection[Any]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        given = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"})
        await only(given, "redis", "problem", "Redis does not answer")


async def test_a_redis_with_another_password(settings: Settings, sql: psycopg.Connection[Any], redis_url: str) -> None:
    server = redis_url.rpartition("@")[2]
    given = settings.model_copy(update={"redis_url": f"redis://:wrong@{server}"})
    await only(given, "redis", "problem", "refuses the password")


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


LETTER = """
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint)
    VALUES (7, gen_random_uuid(), 'order/7', 'order.placed', 8, 'ValueError: no such product', 'abc')
"""


async def test_a_dead_letter(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(LETTER)
    await only(settings, "dead letters", "problem", "1 dead letter; 1 x order.placed: ValueError: no such product")


async def test_more_dead_letters_than_are_counted_are_not_read(
    settings: Settings, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        LETTER.replace("VALUES (7,", "SELECT n,").replace("'abc')", "'abc' FROM generate_series(1, 10001) AS n")
    )
    said = await only(settings, "dead letters", "problem", "there are more than 10000 dead letters")
    assert said.saw == "more than 10,000"


async def test_a_schedule_that_did_not_run(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("UPDATE jobs SET due_at = now() - interval '90 s'")
    await only(settings, "jobs", "problem", "the job expire is late by")


async def test_a_paused_job_that_has_missed_a_run(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("UPDATE jobs SET paused_at = now(), paused_by = 'ann'")
    await only(settings, "jobs", "note", "the job expire was paused")
    sql.execute("UPDATE jobs SET due_at = now() - interval '90 s'")
    await only(settings, "jobs", "warning", "by ann, and has missed a run since")


async def test_a_host_with_a_wrong_clock(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(WORKER, [report(clock_skew=-7.25)])
    await only(settings, "clocks", "warning", "the clock of here is 7.2 s off")
    said = {"clock_skew": 400.0, "clock_complaint": "this host's clock is 400.0 s ahead of the database's"}
    sql.execute("UPDATE workers SET report = %s", [report(**said)])
    await only(settings, "clocks", "problem", "the clock of here is 400.0 s off")


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


async def test_a_weak_signing_key(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    given = in_production(settings).model_copy(update={"secret_key": SecretStr("short")})
    await only(given, "settings", "problem", "WAYBILL_SECRET_KEY has 5 characters")


UNKNOWN = """
    INSERT INTO outbox (event_id, aggregate, type, version, available_at, waits, last_error)
    VALUES (gen_random_uuid(), 'order/7', %s, %s, now(), 'unknown', 'no worker has a handler')
"""


async def test_an_event_type_that_no_worker_knows(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(UNKNOWN, ["order.teleported", 1])
    await only(settings, "events", "problem", "1 event of the type order.teleported wait", "knows that type")


async def test_a_version_of_an_event_that_no_worker_knows(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(UNKNOWN, ["order.placed", 9])
    await only(settings, "events", "problem", "no live worker knows that version of it")


async def test_a_paused_event_type(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("INSERT INTO outbox_types (type, paused, changed_by) VALUES ('order.placed', true, 'ann')")
    await only(settings, "events", "note", "the type order.placed was paused", "by ann")


async def test_a_worker_that_died(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(WORKER.replace("'here', 1", "'there', 2").replace("+ interval", "- interval"), [report()])
    await only(settings, "workers", "warning", "the worker 2 on there: no heartbeat for 36")


async def test_no_worker(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute("DELETE FROM workers")
    sql.execute("UPDATE jobs SET due_at = now() - interval '90 s'")
    await only(settings, "workers", "problem", "no worker is alive")


async def test_workers_of_two_releases(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(WORKER, [report(version="0.0.1")])
    await only(settings, "workers", "note", "workers of several releases are alive: 0.0.1, ")
    sql.execute("UPDATE workers SET started_at = now() - interval '3 h'")
    await only(settings, "workers", "warning", "workers of several releases are alive")


CONSUMER = """
    INSERT INTO log_consumers (name, seen, failed_in_a_row, error, lease_token)
    VALUES ('orders-by-day', '1:1:', 3, 'ValueError', 1)
"""


async def test_a_consumer_of_the_log_that_fails(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(CONSUMER)
    await only(settings, "consumers", "problem", "orders-by-day", "it has failed 3 times in a row: ValueError")


AUDIT = """
    INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample)
    VALUES (now() - CAST(%s AS interval), 1, 1, %s, '[]')
"""


async def test_an_audit_with_differences(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(AUDIT, ["2 h", 0])
    sql.execute(AUDIT, ["1 h", 3])
    await only(settings, "audit", "problem", "found 3 differences; the last good one was 2 h ago")


async def test_books_that_were_not_audited_for_long(settings: Settings, sql: psycopg.Connection[Any]) -> None:
    sql.execute(AUDIT, ["5 h", 0])
    await only(settings, "audit", "warning", "the last audit of the books was 5 h ago")


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


async def test_a_check_that_fails_or_hangs_does_not_end_the_others(settings: Settings) -> None:
    async def fails(_: Installation) -> Checked:
        raise KeyError("an unexpected answer")

    async def hangs(at: Installation) -> Checked:
        async with at.database.engine.connect() as connection:
            await connection.exec_driver_sql("SELECT pg_sleep(60)")
        return Checked("never")

    checks = (Check("first", fails), Check("second", hangs), Check("third", fails, ("first",)), CHECKS[0])
    outcomes = await examine(settings, checks=checks, limit=1.0)
    assert [one.state for one in outcomes] == [State.failed, State.failed, State.skipped, State.ok]
    assert outcomes[0].saw == "the check itself failed: KeyError: 'an unexpected answer'"
    assert outcomes[1].saw == "the check itself failed: it did not answer in time"


def test_a_disk_is_judged_by_what_is_free() -> None:
    gib = 2**30
    assert [state_of(full(free, 100 * gib)) for free in (50 * gib, 9 * gib, gib // 2)] == [
        State.ok,
        State.warning,
        State.problem,
    ]


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({"redis_version": "7.2.4", "maxmemory_policy": "noeviction"}, State.ok),
        ({"redis_version": "5.0.1", "maxmemory_policy": "noeviction"}, State.problem),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, State.note),
        ({"maxmemory_policy": "noeviction", "maxmemory": 100, "used_memory": 95}, State.warning),
        ({"role": "slave"}, State.problem),
        ({"aof_last_write_status": "err"}, State.warning),
    ],
)
def test_redis_is_judged_by_what_it_tells_of_itself(told: dict[str, Any], state: State) -> None:
    assert state_of(judge(told)) is state


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def _environment(settings: Settings, _settings_of_commands: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_REDIS_URL", settings.redis_url)


@pytest.mark.usefixtures("_environment")
def test_the_command_says_what_to_do_and_exits_with_1(sql: psycopg.Connection[Any]) -> None:
    assert "Nothing found." in run().output
    assert json.loads(run("--json").stdout)["healthy"] is True
    sql.execute(LETTER)
    said = run(code=1).output
    assert "1. problem (dead letters): there are 1 dead letter" in said
    assert "They have not taken effect" in said
    assert "$ waybill outbox dead-letters groups" in said
    told = json.loads(run("--json", code=1).stdout)
    (letters,) = (one for one in told["checks"] if one["findings"])
    assert (told["healthy"], letters["name"], letters["findings"][0]["severity"]) == (False, "dead letters", "problem")
    assert letters["findings"][0].keys() == {"severity", "found", "why", "do", "command"}


@pytest.mark.usefixtures("_environment")
def test_wrong_usage_is_2_and_malformed_settings_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    run("--nonsense", code=2)
    monkeypatch.setenv("WAYBILL_OUTBOX_BATCH_SIZE", "none")
    assert "problem (settings): WAYBILL_OUTBOX_BATCH_SIZE: " in run(code=1).output


@pytest.mark.usefixtures("_environment")
def test_settings_with_which_production_refuses_to_start_are_findings(
    sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", "production")
    said = run(code=1).output
    assert "WAYBILL_SECRET_KEY is the development secret" in said
    assert "claim plan" in said
