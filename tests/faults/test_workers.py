"""Several real worker processes, killed and told to stop: every order is processed once."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from benchmarks.shop import open_shop, place_waiting, release_waiting
from services.database import Database
from services.operations import service as operations
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.processes import running_worker, wait_until

ORDERS = 3000
REPEATED = 300

ONCE_EACH = """
    SELECT count(*) FROM orders WHERE status = 'confirmed'
    AND (SELECT array_agg(to_status ORDER BY id) FROM order_transitions WHERE order_id = orders.id)::text[]
        = ARRAY['pending', 'confirmed']
    AND 1 = (SELECT count(*) FROM events WHERE aggregate = 'order/' || orders.id AND type = 'order.confirmed')
    AND NOT EXISTS (
        SELECT FROM transfers WHERE order_id = orders.id
        AND (state <> 'posted' OR (SELECT count(*) FROM entries WHERE transfer_id = transfers.id) <> 2)
    )
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"outbox_batch_size": 50, "outbox_poll_interval": 0.2})


async def balanced(database: Database) -> bool:
    async with UnitOfWork(database.read) as uow:
        return (await operations.books(uow)).balanced


@pytest.mark.parametrize("workers", [2, 4])
async def test_orders_are_confirmed_once_by_several_workers_one_of_which_is_killed(
    database: Database, database_url: str, settings: Settings, tmp_path: Path, workers: int
) -> None:
    place_waiting(database_url, open_shop(database_url, buyers=20), ORDERS, items=3)
    # Some orders have a second event behind the first: it comes late and must change nothing.
    (again,) = [await rows(database, "SELECT event_id FROM waiting ORDER BY n LIMIT :many", many=REPEATED)]
    with ExitStack() as stack, psycopg.connect(database_url, autocommit=True) as watch:

        def waiting() -> int:
            found = watch.execute("SELECT count(*) FROM outbox").fetchone()
            assert found is not None
            return int(found[0])

        release_waiting(watch)
        watch.execute(
            "INSERT INTO outbox (event_id, aggregate, type) SELECT id, aggregate, type FROM events WHERE id = ANY(%s)",
            [again],
        )
        started = [
            stack.enter_context(running_worker(settings, tmp_path / f"worker-{number}.log"))
            for number in range(workers)
        ]
        wait_until(lambda: waiting() < ORDERS + REPEATED - 200, "the first orders")
        started[0].kill()
        left = waiting()
        started[0].start_again()
        wait_until(lambda: waiting() == 0, "an empty outbox")
        assert all(worker.lives for worker in started)

    assert left > 0, "the worker was killed too late to prove anything"
    assert await rows(database, ONCE_EACH) == [ORDERS]
    assert await rows(database, "SELECT count(*) FROM dead_letters") == [0]
    assert await balanced(database)


async def test_sigterm_in_the_middle_of_the_work_leaves_only_complete_batches(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    place_waiting(database_url, open_shop(database_url, buyers=20), ORDERS, items=3)
    with psycopg.connect(database_url, autocommit=True) as watch:
        release_waiting(watch)
        with running_worker(settings, tmp_path / "worker.log") as worker:
            confirmed = "SELECT 1 FROM orders WHERE status = 'confirmed'"
            wait_until(lambda: bool(watch.execute(confirmed).fetchone()), "the first orders")
            assert worker.terminate(10) == 0, worker.said()

    finished = (await rows(database, ONCE_EACH))[0]
    waiting = (await rows(database, "SELECT count(*) FROM outbox"))[0]
    assert finished % settings.outbox_batch_size == 0
    assert 0 < waiting == ORDERS - finished
    assert await rows(database, "SELECT count(*) FROM orders WHERE status = 'pending'") == [waiting]
    assert await balanced(database)


async def test_sigterm_rolls_back_a_batch_that_cannot_finish_and_the_worker_leaves_within_ten_seconds(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    place_waiting(database_url, open_shop(database_url, buyers=2), 10, items=1)
    blocked = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'waybill-worker-outbox' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(database_url) as blocker, psycopg.connect(database_url, autocommit=True) as watch:
        blocker.execute("SELECT 1 FROM accounts WHERE user_id IS NOT NULL FOR UPDATE")
        release_waiting(watch)
        with running_worker(settings, tmp_path / "worker.log") as worker:
            wait_until(lambda: bool(watch.execute(blocked).fetchone()), "the batch to wait for the lock")
            try:
                code = worker.terminate(10)
            except subprocess.TimeoutExpired:
                pytest.fail(f"still there after 10 s: {worker.said()}")
            assert code == 0, worker.said()
        blocker.rollback()

    assert await rows(database, "SELECT status, count(*) FROM orders GROUP BY status") == [("pending", 10)]
    assert await rows(database, "SELECT count(*), sum(attempts) FROM outbox") == [(10, 0)]
    assert await balanced(database)
