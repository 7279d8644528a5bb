"""The audit log is a chain of hashes: what is changed, removed or cut off is found, even if triggers are disabled."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.acting import Action, acting_as
from services.audit.log import queries, service
from services.audit.log.schemas import Head, Wanted
from services.audit.schemas import Difference, DifferenceKind
from services.audit.service import audit
from services.database import Database
from services.unit_of_work import UnitOfWork, background
from worker.jobs.sealing import seal_audit_log


async def act(database: Database, number: int = 1) -> None:
    with acting_as("command:test", "tester@host"):
        async with background(lambda: UnitOfWork(database.write)) as uow:
            for one in range(number):
                uow.record_act(Action.restored, f"user/{one}", reason="a café", was=None, share="0.10")


async def sealed(database: Database) -> Head:
    """Seal what there is, as the job does."""
    while True:
        async with background(lambda: UnitOfWork(database.write)) as uow:
            number, head = await service.seal(uow)
        if number < service.AT_ONCE:
            return head


async def found(database: Database) -> list[tuple[DifferenceKind, Any]]:
    differences: list[Difference] = []
    async with UnitOfWork(database.write) as uow:
        await audit(uow, 60.0, differences.append)
    return [(one.kind, one.subject.get("position")) for one in differences]


async def positions(database: Database) -> list[tuple[int, int | None]]:
    async with database.engine.connect() as connection:
        rows = await connection.execute(text("SELECT id, position FROM audit_log ORDER BY position, id"))
        return [(row.id, row.position) for row in rows]


@asynccontextmanager
async def tampering(database: Database) -> AsyncIterator[AsyncConnection]:
    """What a superuser can do: no triggers."""
    async with database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        yield connection


async def test_acts_are_sealed_in_order_and_the_chain_holds(database: Database) -> None:
    await act(database, 3)
    await sealed(database)
    await act(database, 2)
    head = await sealed(database)
    assert head.position == 5
    assert [position for _, position in await positions(database)] == [1, 2, 3, 4, 5]
    assert await found(database) == []


async def test_more_acts_than_one_transaction_seals_are_sealed_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "AT_ONCE", 2)
    await act(database, 5)
    assert (await sealed(database)).position == 5
    assert await found(database) == []


TAMPERED: dict[str, list[tuple[str, int | None]]] = {
    "UPDATE audit_log SET actor = 'user:1' WHERE position = 3": [("audit_log_changed", 3)],
    "UPDATE audit_log SET at = at + interval '1 microsecond' WHERE position = 3": [("audit_log_changed", 3)],
    "UPDATE audit_log SET details = '{}' WHERE position = 3": [("audit_log_changed", 3)],
    "UPDATE audit_log SET number = 2 WHERE position = 3": [("audit_log_changed", 3)],
    "UPDATE audit_log SET hash = sha256('x') WHERE position = 3": [("audit_log_changed", 3), ("audit_log_changed", 4)],
    "DELETE FROM audit_log WHERE position = 3": [("audit_log_removed", 4)],
    "DELETE FROM audit_log WHERE position = 1": [("audit_log_removed", 2)],
    "DELETE FROM audit_log WHERE position > 3": [("audit_log_cut", None)],
    "DELETE FROM audit_log": [("audit_log_cut", None)],
    "DELETE FROM audit_log_head": [("audit_log_cut", None)],
    "UPDATE audit_log SET position = NULL, hash = NULL WHERE position = 5": [("audit_log_cut", None)],
}


@pytest.mark.parametrize("statement", TAMPERED)
async def test_each_kind_of_tampering_is_found(database: Database, statement: str) -> None:
    await act(database, 5)
    await sealed(database)
    async with tampering(database) as connection:
        await connection.execute(text(statement))
    assert await found(database) == TAMPERED[statement]


async def test_a_row_that_is_put_in_between_is_found(database: Database) -> None:
    await act(database, 5)
    await sealed(database)
    async with tampering(database) as connection:
        await connection.execute(text("UPDATE audit_log SET position = position + 1000 WHERE position > 2"))
        await connection.execute(text("UPDATE audit_log SET position = position - 999 WHERE position > 1000"))
        await connection.execute(
            text(
                "INSERT INTO audit_log (action, object, position, hash)"
                " SELECT 'user.restored', 'user/9', 3, hash FROM audit_log WHERE position = 2"
            )
        )
    assert ("audit_log_changed", 3) in await found(database)


async def test_a_tail_that_is_cut_with_the_head_is_found_with_a_noted_head(
    database: Database,
) -> None:
    await act(database, 5)
    noted = await sealed(database)
    async with tampering(database) as connection:
        await connection.execute(text("DELETE FROM audit_log WHERE position > 3"))
        await connection.execute(
            text(
                "UPDATE audit_log_head SET (position, hash) = (SELECT position, hash FROM audit_log WHERE position = 3)"
            )
        )
    assert await found(database) == []
    async with UnitOfWork(database.write) as uow:
        assert [one.kind for one in await uow.audit_log.cut_after(noted)] == [DifferenceKind.audit_log_cut]


async def test_a_head_that_was_noted_is_still_right_after_more_acts(database: Database) -> None:
    await act(database, 2)
    noted = await sealed(database)
    await act(database, 2)
    await sealed(database)
    async with UnitOfWork(database.write) as uow:
        assert await uow.audit_log.cut_after(noted) == []


async def test_a_row_that_is_committed_late_is_sealed_after_those_with_higher_ids(database: Database) -> None:
    async with UnitOfWork(database.write) as late:
        late.record_act(Action.restored, "user/late")
        await late.flush()
        await act(database, 2)
        await sealed(database)
        await late.commit()
    await sealed(database)
    placed = await positions(database)
    assert [position for _, position in placed] == [1, 2, 3]
    ids = [act_id for act_id, _ in placed]
    assert ids[2] < ids[0] < ids[1]
    assert await found(database) == []


async def test_what_is_not_sealed_in_time_is_found(database: Database) -> None:
    await act(database)
    assert await found(database) == []
    async with tampering(database) as connection:
        await connection.execute(text(f"UPDATE audit_log SET at = at - interval '{queries.TOO_LONG + 1} seconds'"))
    assert await found(database) == [(DifferenceKind.audit_log_unsealed, None)]


async def test_two_workers_never_seal_the_same_row_twice(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "AT_ONCE", 3)
    await act(database, 40)
    await asyncio.gather(*(sealed(database) for _ in range(4)))
    assert [position for _, position in await positions(database)] == list(range(1, 41))
    assert await found(database) == []


async def test_sealing_that_is_cut_short_leaves_nothing_behind_and_the_next_one_continues(database: Database) -> None:
    await act(database, 3)
    async with UnitOfWork(database.write) as uow:
        number, _ = await service.seal(uow)
        assert number == 3
        # Killed before its commit.
    assert [position for _, position in await positions(database)] == [None] * 3
    assert (await sealed(database)).position == 3
    assert await found(database) == []


async def test_an_act_in_a_savepoint_that_is_undone_is_undone_too(database: Database) -> None:
    for plain in (True, False):
        async with background(lambda: UnitOfWork(database.write)) as uow:
            uow.record_act(Action.restored, "user/1")
            with suppress(ValueError):
                async with uow.savepoint(plain=plain):
                    uow.record_act(Action.deleted, "user/2")
                    await uow.flush()
                    raise ValueError("no")
    async with UnitOfWork(database.write) as uow:
        assert [one.object for one in await service.find(uow, Wanted(), 10)] == ["user/1", "user/1"]


async def test_the_job_seals_what_there_is_and_logs_the_head(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "AT_ONCE", 2)
    await act(database, 5)
    worker = SimpleNamespace(open_unit_of_work=lambda: UnitOfWork(database.write))
    with caplog.at_level(logging.INFO):
        await seal_audit_log({"worker": worker})
        await seal_audit_log({"worker": worker})
    heads = [Head.parse(one.head) for one in caplog.records if one.message == "audit log sealed"]  # type: ignore[attr-defined]
    # Nothing is logged when there was nothing to seal.
    assert [head.position for head in heads] == [2, 4, 5]
    async with UnitOfWork(database.write) as uow:
        assert [await uow.audit_log.cut_after(head) for head in heads] == [[], [], []]


async def test_acts_do_not_wait_for_sealing(database: Database) -> None:
    await act(database)
    async with UnitOfWork(database.write) as uow:
        await service.seal(uow)
        async with asyncio.timeout(5):
            await act(database)
        await uow.commit()
    await sealed(database)
    assert await found(database) == []
