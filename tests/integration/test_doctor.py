"""`waybill doctor` finds each planted fault on real servers, and nothing else; a healthy installation has none."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner, Result

from services.cli.doctor.findings import Checked, State, state_of
from services.cli.doctor.installation import Installation
from services.cli.doctor.of_redis import judge
from services.cli.doctor.run import CHECKS, Check, examine
from services.cli.main import app
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.integration.doctored import WORKER, examined, found, healthy, in_production, only, report


@pytest.fixture
def sql(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a healthy installation."""
    with healthy(settings) as connection:
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
