"""The first statement of a transaction begins it, on SQLAlchemy's connection but without its result object."""

from contextlib import nullcontext

import pytest
from sqlalchemy.exc import DBAPIError

from services.database import Database
from services.sql import Sql, Statement, sqlstate
from services.unit_of_work import UnitOfWork
from tests.factories import count_statements, make_user

_NUMBERS = Statement("SELECT n, n * 2 AS twice FROM generate_series(1, CAST(:most AS integer)) AS n")
_RENAME = Statement("UPDATE users SET full_name = :name")
_DIVIDE = Statement("SELECT 1 / CAST(:number AS integer)")
_END = Statement("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("is_listened_to", [False, True])
async def test_it_returns_its_rows_and_their_number_as_later_ones_do(database: Database, is_listened_to: bool) -> None:
    for email in ("first@example.com", "second@example.com"):
        await make_user(database, email=email)
    listening = count_statements(database.engine) if is_listened_to else nullcontext()
    with listening:
        async with UnitOfWork(database.write) as uow:
            sql = Sql.of(uow.session)
            first, later = [await sql.fetch(_NUMBERS, most=2) for _ in range(2)]
            assert (
                [dict(row) for row in first]
                == [dict(row) for row in later]
                == [
                    {"n": 1, "twice": 2},
                    {"n": 2, "twice": 4},
                ]
            )
        async with UnitOfWork(database.write) as uow:
            first_number, later_number = [await Sql.of(uow.session).run(_RENAME, name="Someone") for _ in range(2)]
            assert first_number == later_number == 2


async def test_those_who_listen_to_statements_see_it(database: Database) -> None:
    with count_statements(database.engine) as sent:
        async with UnitOfWork(database.write) as uow:
            await Sql.of(uow.session).fetch(_NUMBERS, most=1)
    assert sent.statements == [_NUMBERS.sql]


async def test_an_error_is_sqlalchemys_and_leaves_the_connection_usable(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        with pytest.raises(DBAPIError) as refused:
            await Sql.of(uow.session).fetch(_DIVIDE, number=0)
        assert sqlstate(refused.value) == "22012"
        assert not refused.value.connection_invalidated
        await uow.rollback()
        assert len(await Sql.of(uow.session).fetch(_NUMBERS, most=3)) == 3


async def test_a_connection_that_it_loses_is_replaced(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        with pytest.raises(DBAPIError) as lost:
            await Sql.of(uow.session).fetch(_END)
        assert lost.value.connection_invalidated
        await uow.rollback()
        assert len(await Sql.of(uow.session).fetch(_NUMBERS, most=3)) == 3
