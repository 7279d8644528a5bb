"""Exports, audits and the connection budget with a streaming replica."""

import csv
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import make_url

from services.api import reads
from services.api.reads import Outcome
from services.budget import check_pool_budget, check_replica_budget
from services.cli.ledger import _audit, _Printer
from services.credits.statement import service as export
from services.database import Database, open_database
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.audited import corrupt
from tests.api.client import Api
from tests.factories import make_user
from tests.replicated import Pair, is_fit, outcomes, running_api, said, until, until_state
from worker.context import open_worker
from worker.jobs.audit import audit_ledger


@pytest.fixture
def settings(replicated: Settings) -> Settings:
    return replicated


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    async with running_api(settings, database) as running:
        await until_state(running, "ok")
        yield running


Statement = Callable[[User], Awaitable[tuple[list[int], httpx2.Response]]]


@pytest.fixture
def statement(api: Api, monkeypatch: pytest.MonkeyPatch) -> Statement:
    """Exports a statement in pieces of three lines; returns the versions of its lines."""
    monkeypatch.setattr(export, "_LINES_A_PIECE", 3)

    async def read(user: User) -> tuple[list[int], httpx2.Response]:
        reply = await api.get("/v1/accounts/me/statement.csv", by=user)
        assert reply.status_code == 200, reply.text
        return [int(line["version"]) for line in csv.DictReader(io.StringIO(reply.text), strict=True)], reply

    return read


async def with_transfers(api: Api, number: int) -> User:
    user, other = await make_user(api.database, credits="100"), await make_user(api.database)
    for _ in range(number):
        reply = await api.post("/v1/transfers", by=user, json={"to_user_id": other.id, "amount": "1"})
        assert reply.status_code == 201, reply.text
    return user


async def test_an_export_is_complete_although_the_replica_is_behind(api: Api, pair: Pair, statement: Statement) -> None:
    user = await with_transfers(api, 4)
    pair.catch_up()
    assert (await statement(user))[0] == [1, 2, 3, 4, 5]
    assert outcomes(api) == {Outcome.replica: 2}
    pair.standby.pause()
    other = await make_user(api.database)
    for _ in range(3):
        await api.post("/v1/transfers", by=user, json={"to_user_id": other.id, "amount": "1"})
    assert (await statement(user))[0] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert outcomes(api)[Outcome.not_replayed] == 3


async def test_an_export_that_has_begun_is_finished_on_the_primary_if_the_replica_dies(
    api: Api, pair: Pair, statement: Statement, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await with_transfers(api, 8)
    pair.catch_up()
    run, pieces = reads.Reads.run, 0

    async def run_and_kill(self: reads.Reads, *arguments: Any) -> Any:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            pair.standby.kill()
        return await run(self, *arguments)

    monkeypatch.setattr(reads.Reads, "run", run_and_kill)
    assert (await statement(user))[0] == [*range(1, 10)]
    assert pieces == 3
    assert outcomes(api)[Outcome.replica] >= 1


async def test_the_audit_reads_the_replica_and_the_primary_while_that_is_away(
    settings: Settings, database: Database, pair: Pair
) -> None:
    users = [await make_user(database, credits="1.00") for _ in range(2)]
    pair.catch_up()
    pair.standby.pause()
    await corrupt(database, "UPDATE accounts SET posted = posted + 1 WHERE user_id = :id", id=users[0].id)

    assert await run_both_audits(settings) == (0, 0)
    pair.standby.kill()
    assert await run_both_audits(settings) == (1, 1)
    pair.standby.start()
    pair.standby.resume()
    pair.catch_up()
    await corrupt(database, "UPDATE accounts SET posted = posted - 1 WHERE user_id = :id", id=users[0].id)
    pair.catch_up()
    assert await run_both_audits(settings) == (0, 0)


async def run_both_audits(settings: Settings) -> tuple[int, int]:
    """The number of differences that the job and the command find."""
    async with open_worker(settings) as worker:
        await audit_ledger({"worker": worker})
        async with UnitOfWork(worker.database.write) as uow:
            kept = await uow.audits.latest()
    assert kept is not None
    return kept.differences, (await _audit(settings, _Printer())).differences


async def test_an_ordinary_role_can_compare_the_servers(settings: Settings, pair: Pair) -> None:
    with psycopg.connect(pair.primary.url(), autocommit=True) as administrator:
        administrator.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
        try:
            pair.catch_up()
            urls = {
                name: make_url(url).set(username="plain", password="plain").render_as_string(hide_password=False)
                for name, url in settings.model_dump(include={"database_url", "database_replica_url"}).items()
            }
            async with open_database(settings.model_copy(update=urls), "plain") as opened:
                await until(lambda: is_fit(opened.replica), "a fit replica")
        finally:
            administrator.execute("DROP ROLE plain")


async def test_the_replicas_pool_is_in_the_budget(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    wide = settings.model_copy(update={"database_pool_size": 50, "database_max_overflow": 0, "api_processes": 3})
    with caplog.at_level(logging.WARNING):
        async with open_database(wide, "wide") as opened:
            assert opened.replica is not None
            assert await check_replica_budget(opened.replica, wide) is None, "nobody has looked at it"
            await until(lambda: is_fit(opened.replica), "a fit replica")
            budget = await check_replica_budget(opened.replica, wide)
            assert budget is not None
            assert (budget.per_process, budget.processes, budget.beside, budget.fits) == (50, 4, 4, False)
            (line,) = said(caplog, "connection pools may exhaust the read replica")
            assert f"= 204; the server allows {budget.available}" in line
        with_replica = await check_pool_budget(database.engine, settings)
        without = await check_pool_budget(database.engine, settings.model_copy(update={"database_replica_url": None}))
        assert with_replica.wanted == without.wanted + 2
