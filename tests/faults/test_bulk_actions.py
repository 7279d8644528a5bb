"""Bulk actions in real processes: a worker is killed again and again, and the database restarts."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from services.database import Database, open_database
from services.local.embedded import EmbeddedPostgres
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkAction, BulkKind, BulkState
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control.schemas import By
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.bulk import FINGERPRINT, counts, make_letters, seen, start
from tests.concurrency.test_bulk_actions import in_order
from tests.concurrency.ticks import Tick, append, drain, effects, make_effects, processor, rows
from tests.faults.test_restarts import crash, postgres
from tests.processes import Running, running

__all__ = ["postgres"]

AGGREGATES, EACH = 2500, 4
LETTERS = AGGREGATES * EACH


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Ticks are about nothing that could be locked, so their order is not checked."""
    return settings.model_copy(update={"outbox_order_check": False})


@pytest.fixture
async def dead(database: Database) -> Database:
    """10,000 dead letters of one kind, and an event behind those of some aggregates."""
    await make_effects(database)
    await make_letters(database, AGGREGATES, EACH)
    await append(database, *(Tick(name=f"n{name}", number=EACH) for name in range(0, AGGREGATES, 100)))
    await drain(processor(database))
    assert await effects(database) == []
    return database


async def until_past(database: Database, action: UUID, done: int, worker: Running) -> BulkAction:
    """Wait until the action has done so many, or has ended."""
    for _ in range(1200):
        found = await seen(database, action)
        if found.done >= done or not found.state.is_active:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found.done} of {done} after 60 s; the worker: {worker.said()}")


async def until_processed(database: Database, worker: Running) -> list[tuple[str, int]]:
    """Wait until the outbox is empty; returns the effects in their order."""
    for _ in range(1200):
        if await rows(database, "SELECT count(*) FROM outbox") == [0]:
            return await effects(database)
        await asyncio.sleep(0.1)
    raise AssertionError(f"events are left after 120 s; the worker: {worker.said()}")


async def test_ten_thousand_of_a_kind_are_replayed_once_and_in_order_while_the_worker_is_killed(
    dead: Database, settings: Settings, tmp_path: Path
) -> None:
    action = await start(dead, BulkKind.replay, BulkFilter(fingerprint=FINGERPRINT))
    kills = 0
    with running(["-m", "tests.faults.bulk_worker"], settings, tmp_path / "worker.log") as worker:
        for done in range(500, LETTERS, 1500):
            found = await until_past(dead, action, done, worker)
            if not found.state.is_active:
                break
            worker.kill()
            kills += 1
            worker.start_again()
        ended = await until_past(dead, action, LETTERS + 1, worker)
        found_effects = await until_processed(dead, worker)
    assert kills >= 3
    assert counts(ended) == (BulkState.finished, LETTERS, 0, 0)
    assert len(found_effects) == LETTERS + AGGREGATES // 100
    assert in_order(found_effects)
    assert await rows(dead, "SELECT count(*), count(DISTINCT event_id) FROM outbox_actions") == [(LETTERS, LETTERS)]


async def test_an_action_is_cancelled_in_the_middle_while_two_workers_run(
    dead: Database, settings: Settings, tmp_path: Path
) -> None:
    action = await start(dead, BulkKind.replay, BulkFilter(type="test.tick"))
    command = ["-m", "tests.faults.bulk_worker"]
    with running(command, settings, tmp_path / "one.log") as one, running(command, settings, tmp_path / "two.log"):
        await until_past(dead, action, 1000, one)
        async with UnitOfWork(dead.write) as uow:
            await bulk.cancel(uow, action, By("an operator", "enough"))
            await uow.commit()
        ended = await seen(dead, action)
        assert ended.state is BulkState.cancelled
        found = await until_idle(dead, ended.done, one)
        assert await seen(dead, action) == ended
    assert 1000 <= ended.done < LETTERS
    assert in_order(found)
    assert await rows(dead, "SELECT count(*) FROM dead_letters") == [LETTERS - ended.done]


async def until_idle(database: Database, replayed: int, worker: Running) -> list[tuple[str, int]]:
    """Wait until what was replayed is processed, and nothing else."""
    for _ in range(600):
        found = await effects(database)
        if len(found) >= replayed:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(found)} of {replayed} after 60 s; the worker: {worker.said()}")


async def test_an_action_continues_after_postgresql_has_crashed_and_restarted(
    settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"database_url": postgres.url()})
    async with open_database(settings, "test") as database:
        await make_effects(database)
        await make_letters(database, 1000, 4)
        action = await start(database, BulkKind.replay, BulkFilter(fingerprint=FINGERPRINT))
        with running(["-m", "tests.faults.bulk_worker"], settings, tmp_path / "worker.log") as worker:
            await until_past(database, action, 500, worker)
            crash(postgres)
            postgres.start()
            await database.engine.dispose()
            ended = await until_past(database, action, 4001, worker)
            found = await until_processed(database, worker)
    assert counts(ended) == (BulkState.finished, 4000, 0, 0)
    assert len(found) == 4000
    assert in_order(found)
