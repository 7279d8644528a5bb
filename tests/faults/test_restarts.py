"""Servers that crash, restart and forget under load: every order once, the books in balance, the workers alive."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from alembic import command
from redis import Redis

from benchmarks.shop import open_shop, place_waiting, release_waiting
from migrations.config import alembic_config
from services.database import Database, open_database
from services.local.embedded import EmbeddedPostgres, EmbeddedRedis
from services.local.embedded.child import stop
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.faults.test_workers import ONCE_EACH, balanced
from tests.processes import running_worker, wait_until

ORDERS = 2000
CONFIRMED = "SELECT count(*) FROM orders WHERE status = 'confirmed'"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated server of this test alone that keeps what it has committed."""
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        command.upgrade(alembic_config(server.url()), "head")
        yield server


def crash(postgres: EmbeddedPostgres) -> None:
    """An immediate shutdown: every backend ends immediately, and the next start recovers."""
    assert postgres.process is not None
    stop(postgres.process, (signal.SIGQUIT, 10.0))
    assert not postgres.running


async def test_postgres_restarted_at_once_and_redis_flushed_stopped_and_restarted_under_load(
    settings: Settings, postgres: EmbeddedPostgres, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    url = postgres.url()
    settings = settings.model_copy(
        update={"database_url": url, "redis_url": redis.url(), "outbox_batch_size": 20, "outbox_poll_interval": 0.1}
    )
    place_waiting(url, open_shop(url, buyers=20), ORDERS, items=2)

    def count(statement: LiteralString) -> int:
        with psycopg.connect(url) as watch:
            found = watch.execute(statement).fetchone()
        assert found is not None
        return int(found[0])

    def confirmed() -> int:
        return count(CONFIRMED)

    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(settings, tmp_path / f"worker-{n}.log")) for n in range(2)]
        # A worker that finds no database when it starts exits, so that its supervisor restarts it.
        wait_until(lambda: count("SELECT count(*) FROM workers") == 2, "both workers")
        with psycopg.connect(url, autocommit=True) as watch:
            release_waiting(watch)
        wait_until(lambda: confirmed() > 0, "the first orders")
        with Redis.from_url(redis.url()) as operator:
            operator.flushall()
        crash(postgres)
        before = len(workers[0].said())
        redis.stop()
        wait_until(lambda: "next attempt in" in workers[0].said()[before // 2 :], "the workers to notice")
        postgres.start()
        left = ORDERS - confirmed()
        wait_until(lambda: confirmed() > ORDERS - left // 2, "orders without Redis")
        redis.start()
        crash(postgres)
        postgres.start()
        wait_until(lambda: confirmed() == ORDERS, "all orders")
        assert all(worker.lives for worker in workers), [
            worker.said()[-3000:] for worker in workers if not worker.lives
        ]

    assert left > 0, "it crashed too late to prove anything"
    async with open_database(settings, "test") as database:
        await assert_once_each(database)


async def assert_once_each(database: Database) -> None:
    assert await rows(database, ONCE_EACH) == [ORDERS]
    assert await rows(database, "SELECT count(*) FROM outbox") == [0]
    assert await rows(database, "SELECT count(*) FROM dead_letters") == [0]
    assert await balanced(database)
