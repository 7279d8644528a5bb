"""Retention drops old months that are exported and no longer needed, and nothing else, without blocking writers."""

import asyncio
import gzip
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

import services.outbox.archive.service
from services.database import Database, open_database
from services.fields import new_id
from services.outbox.archive.service import Export, ExportFailed, export
from services.outbox.log import service as log
from services.outbox.retention import service as retention
from services.outbox.retention.repository import (
    DEFAULT_PARTITION,
    add_partitions,
    existing_partitions,
    month_bounds,
)
from services.outbox.retention.service import Changed, Partition
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import damage, replay_letter
from tests.conftest import Administrator, settings_for, temporary_database
from tests.servers import TestServers
from worker.jobs.retention import drop_expired_events, forget_events

MARCH, APRIL = Partition(2021, 3), Partition(2021, 4)
LATER = datetime(2021, 6, 1, tzinfo=UTC)


@pytest.fixture
async def old_log(database: Database) -> Database:
    """A log with two old months of three events each that nothing needs, and one event of today."""
    async with database.engine.begin() as connection:
        await add_partitions(connection, [(month.year, month.month) for month in (MARCH, APRIL)])
    for month in (MARCH, APRIL):
        await write(database, *(old_id(month, day) for day in (1, 15, 28)))
    await write(database, new_id())
    return database


def old_id(month: Partition, day: int) -> UUID:
    moment = datetime(month.year, month.month, day, 12, tzinfo=UTC)
    return uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000)


async def write(database: Database, *ids: UUID) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO events (id, type, version, aggregate, payload, request_id)"
                " VALUES (:id, 'test.old', 1, 'old/1', CAST(:payload AS jsonb), 'r-1')"
            ),
            [{"id": event_id, "payload": json.dumps({"of": str(event_id), "text": 'a\n"ü'})} for event_id in ids],
        )


async def rows(database: Database, statement: str, **parameters: Any) -> list[Any]:
    async with database.engine.begin() as connection:
        result = await connection.execute(text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []


async def partitions(database: Database) -> set[str]:
    async with database.engine.connect() as connection:
        return {name for name in await existing_partitions(connection) if name.startswith("events_2021")}


async def needed(database: Database, partition: Partition) -> str:
    async with database.engine.connect() as connection:
        return str(await retention.needed(connection, partition))


async def test_months_that_ended_before_the_time_are_dropped_and_others_kept(old_log: Database) -> None:
    events = await rows(old_log, "SELECT * FROM events WHERE id >= :id ORDER BY id", id=month_bounds(2021, 4)[0])
    # April ends a moment later.
    assert await forget_events(old_log.engine, datetime(2021, 4, 30, 23, 59, tzinfo=UTC), None) == [MARCH.name]
    assert await partitions(old_log) == {APRIL.name}
    assert await rows(old_log, "SELECT * FROM events ORDER BY id") == events
    assert await forget_events(old_log.engine, datetime(2021, 5, 1, tzinfo=UTC), None) == [APRIL.name]
    assert await forget_events(old_log.engine, LATER, None) == []
    assert len(await rows(old_log, "SELECT id FROM events")) == 1


async def test_a_waiting_event_keeps_its_month(old_log: Database) -> None:
    await rows(old_log, "INSERT INTO outbox (event_id, aggregate, type) VALUES (:id, 'a', 'b')", id=old_id(MARCH, 31))
    assert await forget_events(old_log.engine, LATER, None) == [APRIL.name]
    assert await needed(old_log, MARCH) == "1 events wait in the outbox"
    await rows(old_log, "DELETE FROM outbox")
    assert await forget_events(old_log.engine, LATER, None) == [MARCH.name]


async def test_a_dead_letter_and_its_replay_keep_their_month(old_log: Database) -> None:
    await rows(
        old_log,
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " SELECT 1, :id, 'old/1', 'test.old', 1, ''",
        id=old_id(APRIL, 1),
    )
    assert await forget_events(old_log.engine, LATER, None) == [MARCH.name]
    assert await needed(old_log, APRIL) == "1 dead letters"
    async with UnitOfWork(old_log.write) as uow:
        assert await replay_letter(uow, 1)
        # It has been replayed, but only in its own transaction.
        assert await forget_events(old_log.engine, LATER, None) == []
        await uow.commit()
    assert await needed(old_log, APRIL) == "1 events wait in the outbox"
    assert await forget_events(old_log.engine, LATER, None) == []


async def test_a_month_stays_until_every_consumer_has_read_it(old_log: Database) -> None:
    async with UnitOfWork(old_log.write) as uow:
        await log.create(uow, "feed")
        await log.create(uow, "late", log.Start.now)
        await uow.commit()
    assert await forget_events(old_log.engine, LATER, None) == []
    assert await needed(old_log, MARCH) == "unread by feed"
    async with UnitOfWork(old_log.write) as uow:
        await log.advance(uow, await log.read(uow, "feed", 4))
        await uow.commit()
    # All of March, and one event of April: a consumer's place counts even before it has reached the end.
    assert await forget_events(old_log.engine, LATER, None) == [MARCH.name]
    async with UnitOfWork(old_log.write) as uow:
        batch = await log.read(uow, "feed", 10)
        await log.advance(uow, batch)
        assert await forget_events(old_log.engine, LATER, None) == [], "what is not committed is not read"
        await uow.commit()
    assert len(batch.events) == 3
    assert await forget_events(old_log.engine, LATER, None) == [APRIL.name]


async def test_an_event_that_is_being_written_to_an_old_month_is_not_dropped(
    old_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAUSE", 0.01)
    async with old_log.engine.connect() as writer:
        await writer.execute(
            text("INSERT INTO events (id, type, version, aggregate, payload) VALUES (:id, 'a', 1, 'a', '{}')"),
            {"id": old_id(MARCH, 2)},
        )
        await writer.execute(
            text("INSERT INTO outbox (event_id, aggregate, type) VALUES (:id, 'a', 'b')"), {"id": old_id(MARCH, 2)}
        )
        forgetting = asyncio.create_task(forget_events(old_log.engine, datetime(2021, 4, 1, tzinfo=UTC), None))
        await asyncio.wait([forgetting], timeout=0.5)
        assert not forgetting.done()
        await writer.commit()
        assert await asyncio.wait_for(forgetting, 10) == []
    assert MARCH.name in await partitions(old_log)


async def test_old_events_without_their_own_partition_are_dropped_too(old_log: Database) -> None:
    strays = (datetime(2020, 12, 31, tzinfo=UTC), datetime(2021, 2, 3, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC))
    await write(old_log, *(uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000) for moment in strays))
    dropped = await forget_events(old_log.engine, datetime(2021, 3, 15, tzinfo=UTC), None)
    assert dropped == ["events_2020_12", "events_2021_02"]
    assert await rows(old_log, f"SELECT count(*) FROM {DEFAULT_PARTITION}") == [(1,)]
    assert await partitions(old_log) == {MARCH.name, APRIL.name}


async def test_a_reader_sees_every_stray_event_while_strays_are_moved(old_log: Database) -> None:
    await write(old_log, old_id(Partition(2021, 1), 5))
    async with old_log.engine.connect() as mover, old_log.engine.connect() as reader:
        months = await retention.stray_months(mover, datetime(2021, 2, 1, tzinfo=UTC))
        assert await add_partitions(mover, months) == ["events_2021_01"]
        reading = asyncio.create_task(reader.scalar(text("SELECT count(*) FROM events")))
        await asyncio.wait([reading], timeout=0.3)
        assert not reading.done()
        await mover.commit()
        # Planned without the new partition, it would look for the stray where it no longer is.
        assert await asyncio.wait_for(reading, 5) == 8


async def test_writers_and_readers_continue_while_a_month_is_exported_and_dropped(
    old_log: Database, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    longest = 0.0

    async def writer() -> int:
        nonlocal longest
        written = 0
        while not stop.is_set():
            started = asyncio.get_running_loop().time()
            await write(old_log, new_id())
            longest = max(longest, asyncio.get_running_loop().time() - started)
            written += 1
        return written

    writing = [asyncio.create_task(writer()) for _ in range(3)]
    # A slow reader of the log: the drop has to try again, and the writers must not wait that long.
    async with old_log.engine.connect() as reader:
        await reader.execute(text("SELECT count(*) FROM events"))
        forgetting = asyncio.create_task(forget_events(old_log.engine, LATER, tmp_path))
        await asyncio.sleep(1.5)
        assert not forgetting.done()
        await reader.rollback()
    assert await asyncio.wait_for(forgetting, 20) == [MARCH.name, APRIL.name]
    stop.set()
    written = sum(await asyncio.gather(*writing))
    assert len(await rows(old_log, "SELECT id FROM events")) == written + 1
    assert longest < 1.2


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def exports_in(folder: Path) -> set[Path]:
    return set(folder.glob("*.jsonl.gz"))


def file_of(folder: Path, month: Partition) -> Path:
    """The only export of the month in the folder."""
    (path,) = folder.glob(f"*.public.{month.name}.*.jsonl.gz")
    return path


def read_export(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


async def test_an_export_holds_the_rows_and_gives_them_back(
    old_log: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.outbox.archive.service, "ROWS", 2)
    held = await rows(old_log, f"SELECT * FROM {MARCH.name} ORDER BY id")
    assert await forget_events(old_log.engine, datetime(2021, 4, 1, tzinfo=UTC), tmp_path / "new folder") == [
        MARCH.name
    ]
    path = file_of(tmp_path / "new folder", MARCH)
    assert files_in(path.parent) == [path.name, f"{path.name}.sha256"]
    lines = [json.dumps(line) for line in read_export(path)]
    back = await rows(
        old_log,
        "SELECT event.* FROM unnest(CAST(:lines AS text[])) AS line,"
        " jsonb_populate_record(NULL::events, CAST(line AS jsonb)) AS event ORDER BY id",
        lines=lines,
    )
    assert back == held
    assert len(back) == 3
    check = await asyncio.create_subprocess_exec("sha256sum", "--check", f"{path.name}.sha256", cwd=path.parent)
    assert await check.wait() == 0


async def test_an_export_that_is_complete_is_not_written_again(old_log: Database, tmp_path: Path) -> None:
    first = await export(old_log.engine, MARCH, tmp_path)
    assert first == Export(file_of(tmp_path, MARCH), 3)
    inode = first.path.stat().st_ino
    # As after a crash between the export and the drop.
    assert await export(old_log.engine, MARCH, tmp_path) == first
    assert first.path.stat().st_ino == inode
    # And between the file and its checksum.
    checksum = first.path.with_name(f"{first.path.name}.sha256")
    checksum.unlink()
    assert await export(old_log.engine, MARCH, tmp_path) == first
    assert first.path.stat().st_ino == inode
    assert checksum.exists()


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", b"no gzip at all"])
async def test_a_damaged_export_is_written_again(old_log: Database, tmp_path: Path, damage: bytes) -> None:
    path = (await export(old_log.engine, MARCH, tmp_path)).path
    path.write_bytes(damage)
    await export(old_log.engine, MARCH, tmp_path)
    assert len(read_export(path)) == 3


async def test_an_export_that_lacks_an_event_is_written_again(old_log: Database, tmp_path: Path) -> None:
    path = (await export(old_log.engine, MARCH, tmp_path)).path
    await write(old_log, old_id(MARCH, 30))
    later = await export(old_log.engine, MARCH, tmp_path)
    assert later.events == 4
    assert (len(read_export(later.path)), len(read_export(path))) == (4, 3)


async def test_a_file_with_other_events_is_neither_accepted_nor_replaced(old_log: Database, tmp_path: Path) -> None:
    first = await export(old_log.engine, MARCH, tmp_path)
    # As many events, but others: as in a database of the same name in another cluster.
    await damage(old_log, f"UPDATE {MARCH.name} SET payload = '{{}}'")
    assert await forget_events(old_log.engine, datetime(2021, 4, 1, tzinfo=UTC), tmp_path) == [MARCH.name]
    (second,) = exports_in(tmp_path) - {first.path}
    assert [line["payload"] for line in read_export(second)] == [{}] * 3
    assert all(line["payload"] for line in read_export(first.path))


async def test_two_databases_export_into_one_folder(
    old_log: Database,
    tmp_path: Path,
    administrator: Administrator,
    servers: TestServers,
    template_database: str,
    redis_url: str,
) -> None:
    with temporary_database(administrator, servers, template_database) as url:
        async with open_database(settings_for(url, redis_url), "test") as other:
            async with other.engine.begin() as connection:
                await add_partitions(connection, [(MARCH.year, MARCH.month)])
            ids = [old_id(MARCH, day) for day in (2, 3, 4)]
            await write(other, *ids)
            await export(old_log.engine, MARCH, tmp_path)
            assert await forget_events(other.engine, LATER, tmp_path) == [MARCH.name]
            (name,) = await rows(other, "SELECT current_database()")
    held = await rows(old_log, f"SELECT id FROM {MARCH.name} ORDER BY id")
    files = {path.name.partition(".")[0]: path for path in exports_in(tmp_path)}
    assert len(files) == 2
    assert [UUID(line["id"]) for line in read_export(files.pop(name[0]))] == ids
    assert [UUID(line["id"]) for line in read_export(files.popitem()[1])] == [row[0] for row in held]


async def test_a_month_that_changed_after_its_export_is_not_dropped(old_log: Database) -> None:
    async with old_log.engine.connect() as connection:
        with pytest.raises(Changed, match="holds 3 events, but 2 were exported"):
            await retention.drop(connection, MARCH, 2)
    assert MARCH.name in await partitions(old_log)


@pytest.mark.parametrize("crashes_in", ["_write", "_complete", "_read"])
async def test_a_crash_during_the_export_leaves_the_month_and_no_file(
    old_log: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes_in: str
) -> None:
    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(services.outbox.archive.service, crashes_in, crash)
        both = pytest.RaisesExc(ExportFailed, match="no space left"), pytest.RaisesExc(ExportFailed)
        with pytest.RaisesGroup(*both):
            await forget_events(old_log.engine, LATER, tmp_path)
    assert await partitions(old_log) == {MARCH.name, APRIL.name}
    assert files_in(tmp_path) == []
    assert await forget_events(old_log.engine, LATER, tmp_path) == [MARCH.name, APRIL.name]


async def test_a_month_that_cannot_be_exported_does_not_block_the_next_one(old_log: Database, tmp_path: Path) -> None:
    # A folder of that name is in the way: no file can replace it.
    name = (await export(old_log.engine, MARCH, tmp_path / "other")).path.name
    (tmp_path / name).mkdir()
    with pytest.raises(ExportFailed):
        await forget_events(old_log.engine, LATER, tmp_path)
    assert await partitions(old_log) == {MARCH.name}
    assert len(read_export(file_of(tmp_path, APRIL))) == 3


async def test_a_month_that_cannot_be_dropped_does_not_block_the_next_one(old_log: Database) -> None:
    await rows(old_log, f"CREATE VIEW of_march AS SELECT id FROM {MARCH.name}")
    with pytest.raises(DBAPIError, match="other objects depend on it"):
        await forget_events(old_log.engine, LATER, None)
    assert await partitions(old_log) == {MARCH.name}


async def test_strays_that_cannot_be_moved_do_not_block_other_months(old_log: Database) -> None:
    await write(old_log, old_id(Partition(2021, 1), 5), old_id(Partition(2021, 2), 5))
    await rows(old_log, "CREATE TABLE events_2021_01 (somebody text)")
    with pytest.raises(DBAPIError, match="events_2021_01"):
        await forget_events(old_log.engine, LATER, None)
    assert await partitions(old_log) == set()
    assert await rows(old_log, f"SELECT count(*) FROM {DEFAULT_PARTITION}") == [(1,)]


async def test_an_export_that_does_not_read_back_is_not_kept(
    old_log: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.outbox.archive.service, "_read", lambda _: None)
    with pytest.raises(ExportFailed, match="does not read back"):
        await forget_events(old_log.engine, datetime(2021, 4, 1, tzinfo=UTC), tmp_path)
    assert MARCH.name in await partitions(old_log)
    assert files_in(tmp_path) == []


async def test_a_draft_left_by_a_crash_is_deleted_and_a_live_one_is_not(old_log: Database, tmp_path: Path) -> None:
    (database,) = await rows(old_log, "SELECT current_database()")
    left, live, other = (
        tmp_path / f"{name}.part"
        for name in (f"{database[0]}.public.{MARCH.name}.left", f"{database[0]}.public.{MARCH.name}.live", "other.left")
    )
    for draft in (left, live, other):
        draft.write_bytes(b"half")
    for draft in (left, other):
        os.utime(draft, (0, 0))
    await export(old_log.engine, MARCH, tmp_path)
    assert (left.exists(), live.exists(), other.exists()) == (False, True, True)


async def test_the_next_run_recovers_from_a_crash_between_export_and_drop(
    old_log: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, "drop", crash)
        with pytest.raises(KeyboardInterrupt):
            await forget_events(old_log.engine, LATER, tmp_path)
    assert await partitions(old_log) == {MARCH.name, APRIL.name}
    assert await forget_events(old_log.engine, LATER, tmp_path) == [MARCH.name, APRIL.name]
    for month in (MARCH, APRIL):
        assert len(read_export(file_of(tmp_path, month))) == 3


async def test_the_job_follows_the_settings_and_zero_days_keep_everything(
    old_log: Database, settings: Settings, tmp_path: Path
) -> None:
    async def run(**changes: object) -> None:
        given = settings.model_copy(update=changes)
        await drop_expired_events({"worker": SimpleNamespace(settings=given, database=old_log)})

    await run(event_retention_days=0)
    await run(event_retention_days=36_500)
    assert await partitions(old_log) == {MARCH.name, APRIL.name}
    await run(event_retention_days=400, event_export_path=tmp_path)
    assert await partitions(old_log) == set()
    assert len(files_in(tmp_path)) == 4
    assert len(await rows(old_log, "SELECT id FROM events")) == 1


async def test_two_runs_at_once_drop_each_month_once(old_log: Database, tmp_path: Path) -> None:
    outcomes: Sequence[list[str]] = await asyncio.gather(
        *(forget_events(old_log.engine, LATER, tmp_path) for _ in range(2))
    )
    assert sorted(name for names in outcomes for name in names) == [MARCH.name, APRIL.name]


async def test_a_drop_that_finds_the_log_busy_gives_up_quickly(old_log: Database) -> None:
    async with old_log.engine.connect() as reader, old_log.engine.connect() as job:
        await reader.execute(text("SELECT count(*) FROM events"))
        started = asyncio.get_running_loop().time()
        with pytest.raises(DBAPIError, match="lock timeout"):
            await retention.drop(job, MARCH, None)
        assert asyncio.get_running_loop().time() - started < 2
