"""Repositories that read or write together use one statement, and each gets its own rows."""

from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.database import Database
from services.outbox.engine.repository import claim_settings
from services.settings import Settings
from services.sql import Read, Reading, Results, Sql, Statement, Write, Writing
from services.unit_of_work import UnitOfWork
from tests.factories import count_statements, plain_sql
from tests.integration.test_unit_of_work import Noted, Undo
from worker.context import open_polling

_NAME = Writing(
    "named AS (INSERT INTO categories (name) SELECT unnest(CAST(:names AS text[])) RETURNING id)",
    counted="named",
)
_RENAME = Writing(
    "renamed AS (UPDATE categories SET name = :name::text || :suffix WHERE name = :name RETURNING id)",
    counted="renamed",
)
_PAIRS = Reading(
    "pairs AS (SELECT n, n * :factor::integer AS product FROM generate_series(1, 2) AS n), "
    "words AS (SELECT :word::text AS word), "
    "none AS (SELECT 1 AS n WHERE false)",
    results={"words": ("word",), "pairs": ("n", "product"), "none": ("n",)},
)
_SUM = Reading("summed AS (SELECT :one::integer + :other::integer AS sum)", results={"summed": ("sum",)})


async def names(database: Database) -> list[str]:
    async with database.engine.connect() as connection:
        return list(await connection.scalars(text("SELECT name FROM categories ORDER BY id")))


def named(*wanted: str, rows: int | None = None) -> Write:
    return Write(_NAME, {"names": list(wanted)}, wanted=rows)


async def test_reads_of_two_repositories_are_one_statement_and_each_gets_its_own_rows(database: Database) -> None:
    def sum_of(results: Results) -> int:
        ((found,),) = results[0]
        return int(found)

    async with UnitOfWork(database.write) as uow:
        with count_statements(database.engine) as sent:
            pairs, added = await uow.read(
                Read(_PAIRS, {"factor": 7, "word": "seven"}, list), Read(_SUM, {"one": 2, "other": 40}, sum_of)
            )
    assert pairs == [[("seven",)], [(1, 7), (2, 14)], []]
    assert added == 42
    assert len(sent.statements) == 1


async def test_writes_go_with_the_events_in_one_statement_and_say_how_much_they_wrote(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with UnitOfWork(database.write) as uow:
        written = await Sql.of(uow.session).write(
            named("a", "b", "c"), Write(_RENAME, {"name": "nobody", "suffix": "!"}, wanted=0)
        )
        with plain_sql(monkeypatch) as ran:
            uow.write_with_events(Write(_RENAME, {"name": "b", "suffix": "!"}, wanted=1))
            uow.record(Noted(number=1))
            assert await uow.categories.count() == 3
            await uow.commit()
    assert written == [3, 0]
    assert await names(database) == ["a", "b!", "c"]
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM events")) == 1
    assert len(ran) == 1


async def test_a_writing_that_is_given_twice_is_run_twice(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        written = await Sql.of(uow.session).write(
            named("a"), Write(_RENAME, {"name": "a", "suffix": "!"}), named("b", "c"), named("d")
        )
        await uow.commit()
    assert written == [1, 0, 2, 1]
    assert await names(database) == ["a", "b", "c", "d"]


async def test_writing_less_than_expected_fails_and_commits_nothing(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        uow.write_with_events(named("a"), Write(_RENAME, {"name": "nobody", "suffix": "!"}, wanted=1))
        with pytest.raises(RuntimeError, match="0 rows were written instead of 1"):
            await uow.commit()
    assert await names(database) == []


async def test_what_a_savepoint_or_a_rollback_undoes_is_not_written_later(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        uow.write_with_events(named("before"))
        with suppress(Undo):
            async with uow.savepoint(plain=True):
                uow.write_with_events(named("inside"))
                raise Undo
        with suppress(IntegrityError):
            async with uow.savepoint(plain=True, check=True):
                uow.write_with_events(named("twice", "twice"))
        async with uow.savepoint(plain=True, check=True):
            uow.write_with_events(named("kept"))
        await uow.commit()
    async with UnitOfWork(database.write) as uow:
        uow.write_with_events(named("given up"))
        await uow.rollback()
        await uow.commit()
    assert await names(database) == ["before", "kept"]


async def test_a_missing_or_unknown_parameter_is_refused_before_anything_is_sent(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        with pytest.raises(TypeError, match="names"):
            await Sql.of(uow.session).write(Write(_NAME, {"name": "a"}))
        await uow.commit()
    assert await names(database) == []


async def test_connections_of_the_poll_loops_are_set_for_claims_and_the_claim_sets_them_back(
    database: Database, settings: Settings
) -> None:
    async def shown(uow: UnitOfWork) -> dict[str, str]:
        rows = await Sql.of(uow.session).fetch(
            Statement("SELECT name, current_setting(name) AS value FROM unnest(CAST(:names AS text[])) AS name"),
            names=list(claim_settings(1)),
        )
        return {row["name"]: row["value"] for row in rows}

    async with open_polling(settings, 12.0) as polling:
        for _ in range(2):
            async with UnitOfWork(polling) as uow:
                before = await shown(uow)
                await uow.outbox.claim([], 0)
                after = await shown(uow)
                await uow.commit()
            assert before == claim_settings(12.0) | {"statement_timeout": "12s"}
            assert after == before | {"enable_seqscan": "on", "enable_bitmapscan": "on", "enable_sort": "on"}
