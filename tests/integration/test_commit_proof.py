"""A commit is proven or raises, and no unit of work begins inside a transaction that was left open."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import httpx2
import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from migrations.config import alembic_config
from services import connections
from services.app import create_app
from services.catalog.schemas import CategoryCreate
from services.connections import CommitUnknown, Connection, ServerSilent, driver_of
from services.database import Database, not_committed, open_database, outcome_unknown
from services.idempotency.repository import IdempotencyRepository
from services.local.embedded import EmbeddedPostgres
from services.settings import Settings
from services.shielding import settled
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, amounts, assert_problem
from tests.concurrency.ticks import rows

COMMITTING = "FROM pg_stat_activity WHERE query = 'COMMIT;' AND state = 'active'"
CATEGORIES = "SELECT count(*) FROM categories"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # The next unit of work gets the connection that this one had.
    return settings.model_copy(update={"database_pool_size": 1, "database_max_overflow": 0})


async def at_each_commit(looking: Database, statement: str) -> None:
    """Make the server do this in the commit of each transaction that writes a category."""
    body = f"$$ BEGIN {statement}; RETURN NULL; END $$"
    await rows(looking, f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS {body}")
    await rows(
        looking,
        "CREATE CONSTRAINT TRIGGER meddle AFTER INSERT ON categories DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION meddle()",
    )


async def until(looking: Database, count: str) -> None:
    """Wait until the query counts something. It is not committed: that might have to wait for a standby."""
    deadline = monotonic() + 20
    async with looking.engine.connect() as connection:
        while (await connection.execute(text(count))).scalar_one() == 0:
            assert monotonic() < deadline, f"waited in vain: {count}"
            await connection.rollback()
            await asyncio.sleep(0.02)


async def write(database: Database, name: str) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name=name))
        await uow.commit()


async def test_a_connection_that_comes_back_inside_a_transaction_is_closed_and_named(
    database: Database, looking: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with UnitOfWork(database.write, name="the careless one") as uow:
        await uow.categories.count()
        driver = await driver_of(await uow.session.connection())
        # SQLAlchemy does not end a transaction that it does not know about.
        await driver.execute("ROLLBACK;")
        adapter = (await (await uow.session.connection()).get_raw_connection()).dbapi_connection
        adapter._transaction = None  # type: ignore[union-attr]
        await driver.execute("BEGIN")
    assert driver.is_closed()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "the careless one" in record.getMessage()

    await write(database, "Lamps")
    assert await rows(looking, CATEGORIES) == [1]


async def test_a_connection_given_out_inside_a_transaction_is_replaced_before_it_is_used(
    database: Database, looking: Database
) -> None:
    await write(database, "Lamps")
    async with UnitOfWork(database.write) as uow:
        await uow.categories.count()
        driver = await driver_of(await uow.session.connection())
    # As a cancelled statement would leave it if nothing waited for its end.
    await driver.execute("BEGIN")

    await write(database, "Chairs")
    assert await rows(looking, CATEGORIES) == [2]
    assert driver.is_closed()


async def test_a_rollback_that_the_server_refuses_gives_the_connection_back_closed(
    database: Database, looking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = asyncpg.Connection.execute

    async def cancelled_rollback(driver: Connection, query: str, *more: Any, **options: Any) -> str:
        if query == "ROLLBACK;":
            raise asyncpg.QueryCanceledError("canceling statement due to user request")
        status: str = await execute(driver, query, *more, **options)
        return status

    async with UnitOfWork(database.write) as uow:
        await uow.categories.count()
        driver = await driver_of(await uow.session.connection())
        monkeypatch.setattr(asyncpg.Connection, "execute", cancelled_rollback)
    monkeypatch.undo()
    assert driver.is_closed()
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0
    await write(database, "Lamps")
    assert await rows(looking, CATEGORIES) == [1]


async def test_a_refused_rollback_is_not_reported_as_a_missing_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> str:
        raise asyncpg.QueryCanceledError("canceling statement due to user request")

    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, Connection)
        monkeypatch.setattr(asyncpg.Connection, "execute", refuse)
        with pytest.raises(ServerSilent, match=r"refused to roll back.*user request"):
            await driver.execute("ROLLBACK;")
        monkeypatch.undo()
        assert driver.is_closed()


async def test_the_driver_begins_no_transaction_inside_another(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.count()
        driver = await driver_of(await uow.session.connection())
        with pytest.raises(Exception, match="belongs to someone else"):
            driver.transaction()
        assert driver.is_closed()


async def test_a_transaction_that_failed_before_is_not_reported_as_committed(
    database: Database, looking: Database
) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        driver = await driver_of(await uow.session.connection())
        with pytest.raises(Exception, match="division by zero"):
            await driver.execute("SELECT 1 / 0")
        with pytest.raises(DBAPIError) as refused:
            await uow.commit()
    assert not_committed(refused.value)
    assert not outcome_unknown(refused.value)
    assert driver.is_closed()
    assert await rows(looking, CATEGORIES) == [0]


async def test_a_transaction_that_was_ended_underneath_is_not_reported_as_committed(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        await uow.categories.count()
        driver = await driver_of(await uow.session.connection())
        await driver.execute("ROLLBACK")
        with pytest.raises(DBAPIError) as refused:
            await uow.commit()
    assert not_committed(refused.value)
    assert driver.commits == 0


async def test_a_warning_during_the_commit_makes_its_outcome_unknown(
    database: Database, looking: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await at_each_commit(looking, "RAISE WARNING 'something happened'")
    async with UnitOfWork(database.write, name="POST /v1/categories") as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        with pytest.raises(DBAPIError) as unknown:
            await uow.commit()
    assert outcome_unknown(unknown.value)
    assert "POST /v1/categories" in caplog.text


async def test_a_connection_cut_during_the_commit_makes_its_outcome_unknown(
    database: Database, looking: Database
) -> None:
    await at_each_commit(looking, "PERFORM pg_sleep(30)")
    async with UnitOfWork(database.write) as uow:
        await uow.categories.create(CategoryCreate(name="Lamps"))
        committing = asyncio.create_task(uow.commit())
        await until(looking, f"SELECT count(pg_terminate_backend(pid)) {COMMITTING}")
        with pytest.raises(DBAPIError) as unknown:
            await committing
    assert outcome_unknown(unknown.value)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_commit_that_has_begun_is_finished_even_if_its_task_is_cancelled(
    database: Database, looking: Database, times: int
) -> None:
    await at_each_commit(looking, "PERFORM pg_sleep(1)")
    task = asyncio.create_task(write(database, "Lamps"))
    await until(looking, f"SELECT count(*) {COMMITTING}")
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled()
    assert await rows(looking, CATEGORIES) == [1]
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    assert (pool.checkedin(), pool.checkedout()) == (1, 0)


@pytest.fixture
def unattended(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that waits for a standby which does not exist."""
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        command.upgrade(alembic_config(server.url()), "head")
        yield server


@pytest.fixture
async def alone(settings: Settings, unattended: EmbeddedPostgres) -> AsyncIterator[tuple[Database, Database]]:
    """Its database, with connections for work, and others for inspection that do not wait for a standby."""
    url = settings.model_copy(update={"database_url": unattended.url()})
    async with open_database(url, "alone") as one, open_database(url, "looking") as other:
        await wait_for_standby(other, "nobody")
        yield one, other


async def wait_for_standby(looking: Database, name: str) -> None:
    """Make every commit wait for this standby, or for none if the name is empty."""
    async with looking.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
        await connection.execute(text("SELECT pg_reload_conf()"))
    await until(
        looking, f"SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = '{name}'"
    )


async def cancel_wait(looking: Database) -> None:
    """Cancel a commit's wait for its standby, as an impatient operator would."""
    await until(looking, "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


async def test_a_cancelled_wait_for_the_standby_makes_the_outcome_unknown(alone: tuple[Database, Database]) -> None:
    database, looking = alone
    task = asyncio.create_task(write(database, "Lamps"))
    await cancel_wait(looking)
    with pytest.raises(DBAPIError) as unknown:
        await task
    assert outcome_unknown(unknown.value)
    assert isinstance(unknown.value.orig.__cause__ if unknown.value.orig else None, CommitUnknown)


async def test_a_marker_makes_a_commit_wait_for_the_standby_and_a_read_does_not(
    alone: tuple[Database, Database],
) -> None:
    database, looking = alone
    async with UnitOfWork(database.write) as uow:
        await uow.categories.count()
        await uow.commit()

    async def mark() -> None:
        async with UnitOfWork(database.write) as uow:
            await uow.idempotency.write_marker()
            await uow.commit()

    task = asyncio.create_task(mark())
    await cancel_wait(looking)
    with pytest.raises(DBAPIError) as unknown:
        await task
    assert outcome_unknown(unknown.value)


async def test_a_stored_reply_is_replayed_only_after_a_commit_that_waited_for_the_standby(
    settings: Settings, unattended: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_connection(_: IdempotencyRepository) -> None:
        raise PoolTimeout("no connection")

    local = settings.model_copy(update={"database_url": unattended.url(), "database_pool_size": 4})
    app = create_app(local)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        open_database(local, "looking") as looking,
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        api = Api(app, client, local, looking)
        payer, payee, _ = await api.shop()
        body = {"to_user_id": payee.id, "amount": "1.00"}
        assert (await api.post("/v1/transfers", by=payer, key="k", json=body)).status_code == 201

        await wait_for_standby(looking, "nobody")
        replaying = asyncio.create_task(api.post("/v1/transfers", by=payer, key="k", json=body))
        await cancel_wait(looking)
        assert_problem(await replaying, 503, "outcome_unknown")

        # It is not claimed that nothing took effect if the commit cannot even be tried.
        with monkeypatch.context() as patch:
            patch.setattr(IdempotencyRepository, "write_marker", no_connection)
            assert_problem(await api.post("/v1/transfers", by=payer, key="k", json=body), 503, "outcome_unknown")

        await wait_for_standby(looking, "")
        replayed = await api.post("/v1/transfers", by=payer, key="k", json=body)
        assert (replayed.status_code, replayed.headers["idempotency-replayed"]) == (201, "true")
        assert await api.credits_of(payer) == amounts("999")


async def test_a_commit_that_is_given_up_leaves_no_backend_waiting_for_the_standby(
    alone: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_COMMIT_LIMIT", 0.5)
    database, looking = alone
    for name in ("Lamps", "Chairs"):
        with pytest.raises(DBAPIError) as unknown:
            await write(database, name)
        assert outcome_unknown(unknown.value)
    stuck = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await until(looking, f"SELECT CASE WHEN ({stuck}) = 0 THEN 1 ELSE 0 END")
    # The server got the request to stop waiting: both are committed, and their locks are released.
    assert await rows(looking, CATEGORIES) == [2]
