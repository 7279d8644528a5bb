"""What operators ask of a real worker: to be quiet, to work again, to stop."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from services.database import Database
from services.errors import Conflict, NotFound
from services.fields import new_id
from services.orders.events import OrderPlaced
from services.orders.models import OrderStatus
from services.outbox.bulk.models import BulkKind, BulkState
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control import service as control
from services.outbox.control.schemas import By
from services.outbox.models import WorkerWish
from services.settings import Settings
from services.unit_of_work import UnitOfWork, background
from tests.concurrency import bulk as bulk_actions
from tests.concurrency.ticks import rows
from tests.factories import make_order, make_product, make_user
from tests.faults.test_heartbeat import listed, some, until
from tests.processes import running_worker

BY = By("user/1", "deploying")
LEASED = "SELECT name FROM log_consumers WHERE lease_owner IS NOT NULL"


async def ask(database: Database, wish: WorkerWish | None) -> None:
    (worker,) = await listed(database)
    async with background(lambda: UnitOfWork(database.write)) as uow:
        await control.ask(uow, worker.id, wish, BY)


async def quiet(database: Database, expected: bool) -> None:
    """Wait until the worker says that it is quiet, or that it is not."""
    statement = "SELECT report -> 'quiet' = 'true' FROM workers"
    await until(database, lambda found: found == [expected], statement)


async def write_event(database: Database) -> None:
    """An event of an order that is cancelled already: to process it changes nothing else."""
    buyer = await make_user(database)
    lines = [(await make_product(database), 1)]
    order = await make_order(database, buyer=buyer, lines=lines, status=OrderStatus.cancelled)
    async with background(lambda: UnitOfWork(database.write)) as uow:
        uow.record(OrderPlaced(order_id=order.id, buyer_id=buyer.id, total=order.total))


async def waiting(database: Database) -> list[Any]:
    return await rows(database, "SELECT count(*) FROM outbox")


async def test_a_quiet_worker_takes_nothing_until_it_is_resumed(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with running_worker(settings, tmp_path / "worker.log") as worker:
        await some(database, 1)
        await until(database, bool, LEASED)
        await ask(database, WorkerWish.quiet)
        await quiet(database, True)
        await until(database, lambda found: not found, LEASED)
        await rows(database, "UPDATE jobs SET requested_at = now(), requested_by = 'x' WHERE name = 'audit_ledger'")
        await write_event(database)
        action = await bulk_actions.start(database, BulkKind.retry_now, BulkFilter(), everything=True)
        # Longer than the worker waits between two looks at events and at jobs.
        await asyncio.sleep(settings.outbox_poll_interval + 6)
        assert await waiting(database) == [1]
        assert await rows(database, "SELECT runs FROM jobs WHERE name = 'audit_ledger'") == [0]
        assert (await bulk_actions.seen(database, action)).state is BulkState.waiting
        assert [one.complaint for one in await listed(database)] == [None]
        await ask(database, None)
        await quiet(database, False)
        await until(database, lambda found: found == [0], "SELECT count(*) FROM outbox")
        await until(database, lambda found: found == [1], "SELECT runs FROM jobs WHERE name = 'audit_ledger'")
        await bulk_actions.until(database, action, lambda found: found.state is BulkState.finished)
        assert await asyncio.to_thread(worker.terminate, 10) == 0


async def test_a_worker_that_is_asked_to_stop_ends_as_after_sigterm(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with running_worker(settings, tmp_path / "worker.log") as worker:
        await some(database, 1)
        await ask(database, WorkerWish.stop)
        with pytest.raises(Conflict, match="is shutting down"):
            await ask(database, None)
        assert await asyncio.to_thread(worker.process.wait, 20) in (0, -signal.SIGTERM)
    assert await listed(database) == []
    acts = await rows(database, "SELECT action, reason, details ->> 'pid' FROM audit_log WHERE action LIKE 'worker.%'")
    assert [tuple(row) for row in acts] == [("worker.stopped", "deploying", str(worker.process.pid))]


async def test_a_worker_that_has_left_cannot_be_asked(database: Database) -> None:
    with pytest.raises(NotFound, match="has stopped, or never existed"):
        async with background(lambda: UnitOfWork(database.write)) as uow:
            await control.ask(uow, new_id(), WorkerWish.quiet, BY)
