"""Scheduled jobs in real workers: without Redis, with a silent Redis, and when a worker is killed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.database import Database
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.processes import Running, running, running_worker

JOBS = [
    "audit_ledger",
    "drop_expired_events",
    "ensure_event_partitions",
    "expire",
    "forget_workers",
    "prune_idempotency_keys",
    "prune_sessions",
    "report_backlog",
    "seal_audit_log",
    "send_mails",
    "wake_stranded_events",
]
OVERDUE = "UPDATE jobs SET due_at = now() - interval '9 hours'"


async def until(database: Database, query: str, expected: object, worker: Running) -> None:
    """Wait until the query returns this first row."""
    found: object = None
    for _ in range(400):
        found = next(iter(await rows(database, query)), None)
        if found == expected:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{query}: {found} instead of {expected} after 40 s; the worker: {worker.said()}")


async def make_notebooks(database: Database) -> None:
    """Create the tables into which `job_worker` writes."""
    for table in ("beginnings", "endings"):
        await rows(database, f"CREATE TABLE {table} (pid integer)")


@asynccontextmanager
async def nobody(_: str) -> AsyncIterator[str]:
    """The address of a Redis where nothing listens."""
    yield f"redis://127.0.0.1:{any_free_port()}/0"


@asynccontextmanager
async def silent(_: str) -> AsyncIterator[str]:
    """The address of a Redis that accepts connections and never answers."""
    open_ones = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        await reader.read()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        for one in open_ones:
            one.close()


@pytest.mark.parametrize("redis_is", [nobody, silent])
async def test_a_worker_without_redis_runs_every_schedule_and_stops_in_time(
    database: Database, settings: Settings, tmp_path: Path, redis_is: object
) -> None:
    assert callable(redis_is)
    async with redis_is("") as url:
        without = settings.model_copy(update={"redis_url": url})
        with running_worker(without, tmp_path / "worker.log") as worker:
            await until(database, "SELECT count(*) FROM jobs", len(JOBS), worker)
            await rows(database, OVERDUE)
            ran = "SELECT array_agg(name::text ORDER BY name) FROM jobs WHERE ok AND due_at > now()"
            await until(database, ran, JOBS, worker)
            reported = "SELECT (report->'jobs'->'audit_ledger'->>'runs')::int FROM workers"
            await until(database, reported, 1, worker)
            assert await asyncio.to_thread(worker.terminate, 10) == 0, worker.said()
    assert await rows(database, "SELECT count(*) FROM jobs WHERE lease_owner IS NOT NULL") == [0]


async def test_a_job_on_arqs_queue_runs_under_the_claim_of_its_row(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    async with Redis.from_url(settings.redis_url) as redis:
        with running_worker(settings, tmp_path / "worker.log") as worker:
            await until(database, "SELECT count(*) FROM jobs", len(JOBS), worker)
            now = int(time.time() * 1000)
            await redis.set("arq:job:mine", json.dumps({"t": 1, "f": "forget_workers", "a": [], "k": {}, "et": now}))
            await redis.zadd("waybill:public:jobs", {"mine": now})
            await until(database, "SELECT runs FROM jobs WHERE name = 'forget_workers'", 1, worker)
            assert await redis.zcard("waybill:public:jobs") == 0


async def test_the_job_of_a_killed_worker_is_taken_over(database: Database, settings: Settings, tmp_path: Path) -> None:
    await make_notebooks(database)
    with running(["-m", "tests.faults.job_worker", "3600"], settings, tmp_path / "one.log") as first:
        await until(database, "SELECT pid FROM beginnings", first.process.pid, first)
        with running(["-m", "tests.faults.job_worker", "0"], settings, tmp_path / "two.log") as second:
            await until(database, "SELECT count(*) FROM workers", 2, second)
            # As long as the first worker is alive, the other one leaves the job to it.
            await asyncio.sleep(5)
            assert await rows(database, "SELECT count(*) FROM beginnings") == [1]
            first.kill()
            await until(database, "SELECT pid FROM endings", second.process.pid, second)
            await until(database, "SELECT (runs, failures, ok)::text FROM jobs", "(2,1,t)", second)


async def test_a_worker_that_is_told_to_stop_hands_its_job_to_another_immediately(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    await make_notebooks(database)
    with running(["-m", "tests.faults.job_worker", "3600"], settings, tmp_path / "one.log") as first:
        await until(database, "SELECT pid FROM beginnings", first.process.pid, first)
        assert await asyncio.to_thread(first.terminate, 10) == 0
    assert await rows(database, "SELECT (lease_owner IS NULL, due_at < now(), runs)::text FROM jobs") == ["(t,t,0)"]
