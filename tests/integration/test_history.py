"""The history that workers write, and the series that are made of it."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.database import Database
from services.history import service
from services.history.models import SLOT
from services.history.schemas import LENGTHS, Done, History, Period
from services.outbox.control.repository import ControlRepository
from services.unit_of_work import UnitOfWork, background
from worker.history import History as Writer
from worker.poller import Progress

FIRST, SECOND = uuid4(), uuid4()


async def write(database: Database, worker_id: UUID, done: Done) -> None:
    async with background(lambda: UnitOfWork(database.write)) as uow:
        await service.write(uow, worker_id, done)


async def read(database: Database, period: Period = Period.minutes_5) -> History:
    async with UnitOfWork(database.write) as uow:
        return await service.read(uow, period)


async def rows(database: Database, statement: str) -> list[tuple[object, ...]]:
    async with database.engine.begin() as connection:
        result = await connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


async def time_passes(database: Database, slots: int = 1) -> None:
    """As if everything had been written that many slots earlier."""
    await rows(database, f"UPDATE history SET at = at - interval '{slots * SLOT} seconds'")


async def test_what_workers_do_in_a_slot_is_added_up_and_the_first_of_them_looks_at_what_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker_id, processed in ((FIRST, 30), (SECOND, 20), (FIRST, 10)):
        await write(database, worker_id, Done(processed=processed, batches=2, queued=10, queue_seconds=5.0))
    looked = await rows(database, "SELECT count(*), count(waiting) FROM history")
    assert looked in ([(2, 1)], [(3, 2)], [(4, 2)]), "one look a slot, of which two may have begun"
    await time_passes(database)
    found = await read(database)
    assert sum(rate or 0 for rate in found.processed) * SLOT == pytest.approx(60)
    assert {value for value in found.queue_seconds if value is not None} == {0.5}
    assert max(number or 0 for number in found.workers) == 2


async def test_if_nothing_waits_and_nothing_is_dead_that_is_noted_without_a_look(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    look = ControlRepository.backlog

    async def backlog(control: ControlRepository, *, retrying: bool = True) -> dict[str, Any]:
        looks.append(retrying)
        return await look(control, retrying=retrying)

    monkeypatch.setattr(ControlRepository, "backlog", backlog)
    for worker_id in (FIRST, SECOND):
        await write(database, worker_id, Done())
    noted = "SELECT waiting, dead_letters, oldest_due_seconds FROM history WHERE waiting IS NOT NULL"
    assert set(await rows(database, noted)) == {(0, 0, 0.0)}
    assert looks == []
    await time_passes(database, 2)
    await rows(
        database,
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " VALUES (1, gen_random_uuid(), 'a/1', 'a', 1, '')",
    )
    await write(database, FIRST, Done())
    assert looks == [False]
    newest = "SELECT waiting, dead_letters FROM history ORDER BY at DESC LIMIT 1"
    assert await rows(database, newest) == [(0, 1)]


async def test_the_slot_that_is_not_over_is_left_out(database: Database) -> None:
    await write(database, FIRST, Done(processed=1))
    await rows(database, "UPDATE history SET at = date_bin('10 seconds', now(), 'epoch')")
    assert (await read(database)).times == []


@pytest.mark.parametrize("period", Period)
async def test_a_series_has_a_value_for_each_step_and_none_where_no_worker_was_running(
    database: Database, period: Period
) -> None:
    length, step = LENGTHS[period]
    await write(database, FIRST, Done(processed=100 * step))
    await time_passes(database)
    await write(database, FIRST, Done())
    await time_passes(database, 2 * step // SLOT)
    found = await read(database, period)
    assert len(found.times) == length // step
    assert {after - before for before, after in zip(found.times, found.times[1:], strict=False)} == {step}
    series = found.model_dump(exclude={"period", "step", "times"})
    assert {len(values) for values in series.values()} == {length // step}
    known = [rate for rate in found.processed if rate is not None]
    assert sum(known) == pytest.approx(100)
    assert found.processed[0] is None
    assert found.processed[-1] is None


async def test_the_rate_of_recorded_events_comes_from_the_positions_that_were_taken(database: Database) -> None:
    for position in (1000, 1050, 1200):
        await time_passes(database)
        await write(database, FIRST, Done())
        await rows(database, f"UPDATE history SET position = {position} WHERE at = (SELECT max(at) FROM history)")
    await time_passes(database)
    assert [rate for rate in (await read(database)).recorded if rate is not None] == [5.0, 15.0]


async def test_rows_are_deleted_after_a_day(database: Database) -> None:
    await write(database, FIRST, Done())
    await rows(database, "UPDATE history SET at = at - interval '26 hours'")
    await write(database, SECOND, Done())
    assert await rows(database, "SELECT worker_id FROM history") == [(SECOND,)]


async def test_a_worker_writes_what_it_did_since_its_last_row(database: Database) -> None:
    progress = Progress()
    writer = Writer(lambda: UnitOfWork(database.write), progress, FIRST)
    progress.processed, progress.rung = 7, 2
    await writer.write()
    progress.processed = 9
    await writer.write()
    assert await rows(database, "SELECT sum(processed), sum(rung) FROM history") == [(9, 2)]


async def test_what_could_not_be_written_is_written_with_the_next_row(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress()
    writer = Writer(lambda: UnitOfWork(database.write), progress, FIRST)
    progress.processed = 5
    await rows(database, "ALTER TABLE history RENAME TO away")
    async with writer:
        pass
    assert "the history was not written" in caplog.text
    await rows(database, "ALTER TABLE away RENAME TO history")
    await writer.write()
    assert await rows(database, "SELECT sum(processed) FROM history") == [(5,)]


def test_periods_consist_of_whole_steps_and_steps_of_whole_slots() -> None:
    for length, step in LENGTHS.values():
        assert length % step == 0
        assert timedelta(seconds=step) % timedelta(seconds=SLOT) == timedelta()
