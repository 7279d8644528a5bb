"""Scheduled upkeep: a row or month that cannot be removed or created does not affect the others."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.fields import now
from services.outbox.retention.repository import existing_partitions, months_from, partition_name
from services.settings import Settings
from services.sweeps import service
from tests.concurrency.ticks import rows
from tests.factories import make_user
from tests.logs import capture_logs
from worker.context import open_worker
from worker.jobs import retention

OLD_KEYS = """
    INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body, created_at)
    SELECT :user, 'POST', '/v1/orders', 'key-' || n, '\\x00', 201, '{}', '', now() - interval '25 hours'
    FROM generate_series(1, 9) AS n
"""
KEPT = "SELECT key FROM idempotency_keys ORDER BY key"
REFUSE = """
    CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF to_jsonb(OLD) ->> TG_ARGV[0] = TG_ARGV[1] THEN RAISE EXCEPTION 'this one stays'; END IF;
            RETURN OLD;
        END
    $$
"""


@pytest.fixture
async def ctx(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    async with open_worker(settings) as worker:
        yield {"worker": worker}


async def refuse_to_delete(database: Database, table: str, column: str, value: str) -> None:
    await rows(database, REFUSE)
    await rows(
        database,
        f"CREATE TRIGGER refuse_one BEFORE DELETE ON {table} FOR EACH ROW"
        f" EXECUTE FUNCTION refuse_one('{column}', '{value}')",
    )


@pytest.mark.parametrize("slice_size", [2, 2000])
async def test_undeletable_and_locked_keys_do_not_keep_others_from_being_deleted(
    database: Database, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch, slice_size: int
) -> None:
    monkeypatch.setattr(retention, "_KEYS_PER_TRANSACTION", slice_size)
    monkeypatch.setattr(service, "LOCK_TIMEOUT", 300.0)
    user = await make_user(database)
    await rows(database, OLD_KEYS, user=user.id)
    await rows(
        database, f"{OLD_KEYS} OFFSET 8".replace("25 hours", "1 hour").replace("'key-'", "'young-'"), user=user.id
    )
    await refuse_to_delete(database, "idempotency_keys", "key", "key-3")
    async with database.engine.connect() as somebody:
        await somebody.execute(text("SELECT FROM idempotency_keys WHERE key = 'key-5' FOR UPDATE"))
        await asyncio.wait_for(retention.prune_idempotency_keys(ctx), 20)

    assert await rows(database, KEPT) == ["key-3", "key-5", "young-9"]
    failures = "SELECT sweep, subject, attempts, error FROM sweep_failures"
    subject = f"{user.id} POST /v1/orders key-3"
    assert await rows(database, failures) == [("idempotency_keys", subject, 1, "RaiseError: this one stays")]

    await rows(database, "DROP TRIGGER refuse_one ON idempotency_keys")
    await rows(database, "UPDATE sweep_failures SET next_at = now()")
    await retention.prune_idempotency_keys(ctx)
    assert await rows(database, KEPT) == ["young-9"]
    assert await rows(database, failures) == []


async def test_a_worker_row_that_cannot_be_deleted_does_not_keep_the_others(
    database: Database, ctx: dict[str, Any]
) -> None:
    await rows(
        database,
        "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)"
        " SELECT gen_random_uuid(), 'host-' || n, 1, now(), now() - interval '25 hours', now(), '{}'"
        " FROM generate_series(1, 3) AS n",
    )
    await refuse_to_delete(database, "workers", "host", "host-2")
    with capture_logs() as logged:
        await retention.forget_workers(ctx)
    assert await rows(database, "SELECT host FROM workers WHERE host LIKE 'host-%'") == ["host-2"]
    assert [line["sweep"] for line in logged if line["level"] == "error"] == ["lost_workers"]


async def test_a_month_that_cannot_be_created_does_not_stop_the_others(database: Database, ctx: dict[str, Any]) -> None:
    names = [partition_name(*month) for month in months_from(now().date(), 3)]
    for name in names[1:]:
        await rows(database, f"DROP TABLE IF EXISTS {name}")
    await rows(database, f"CREATE TABLE {names[2]} (somebody text)")
    with pytest.raises(DBAPIError, match=names[2]):
        await retention.ensure_event_partitions(ctx)
    async with database.engine.connect() as connection:
        assert set(names) - await existing_partitions(connection) == {names[2]}
