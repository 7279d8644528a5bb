"""A connection that the server has just ended is closed, even before the driver learns of it."""

import asyncio

import asyncpg
import pytest
import uvloop
from sqlalchemy.exc import DBAPIError

from services.api.problems import is_unavailable
from services.connections import Connection
from services.database import Database, not_committed, outcome_unknown
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.roles import superuser_of


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_whose_transport_is_closed_is_closed(settings: Settings, loop_factory: type) -> None:
    async def run_a_statement() -> None:
        url = superuser_of(settings).replace("+asyncpg", "")
        connection = await asyncpg.connect(url, connection_class=Connection)
        prepared = await connection.prepare("SELECT 1")
        assert not connection.is_closed()
        connection._transport.close()
        assert connection.is_closed()
        for statement in (connection.execute, connection.fetch):
            with pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
                await statement("SELECT 1")
            await asyncio.sleep(0)
        with pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
            await prepared.fetch()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run_a_statement())


async def test_a_commit_on_a_connection_that_has_ended_is_known_to_have_no_effect(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.users.get(1)
        driver = await uow._sql.driver()
        driver._transport.close()
        with pytest.raises(DBAPIError) as lost:
            await uow.commit()
    assert is_unavailable(lost.value)
    assert not not_committed(lost.value)
    assert not outcome_unknown(lost.value)


async def test_connecting_takes_no_turns(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[asyncio.Task[object] | None] = []
    connect = asyncpg.connect

    async def connect_and_note(*arguments: object, **options: object) -> object:
        tasks.append(asyncio.current_task())
        return await connect(*arguments, **options)

    monkeypatch.setattr(asyncpg, "connect", connect_and_note)
    await database.engine.dispose()
    async with database.engine.connect():
        pass
    assert tasks
    # Only steps of the request's own task take turns.
    assert asyncio.current_task() not in tasks
