"""A database whose connections go silent without being closed, as when its host vanishes."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

import services.connections
from services.database import Database, Limits, close, open_database, outcome_unknown
from services.settings import Settings
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.faults.storm.proxy import Proxy
from tests.integration.test_commit_proof import CATEGORIES, COMMITTING, at_each_commit, until, write
from worker.context import open_polling

ASKED = Statement("SELECT 1 AS one")


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    """Stands between the test's second database and the server."""
    port = make_url(settings.database_url).port
    assert port is not None
    opened = Proxy(port)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def distant(settings: Settings, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """The test's database, through the proxy, with five connections and timeouts of half a second."""
    monkeypatch.setattr(services.connections, "PROMPT", 0.5)
    async with open_database(through(settings, proxy), "distant") as opened:
        yield opened


def through(settings: Settings, proxy: Proxy) -> Settings:
    url = make_url(settings.database_url).set(host="127.0.0.1", port=proxy.port)
    return settings.model_copy(
        update={"database_url": url.render_as_string(hide_password=False), "database_pool_size": 5}
    )


async def ask(database: Database) -> int:
    async with UnitOfWork(database.write) as uow:
        (row,) = await uow.ledger.sql.fetch(ASKED)
    return int(row["one"])


async def fill(database: Database) -> int:
    """Open all the connections that the pool keeps; return their number."""
    barrier = asyncio.Barrier(5)

    async def hold() -> None:
        async with UnitOfWork(database.write) as uow:
            await uow.ledger.sql.fetch(ASKED)
            await barrier.wait()

    await asyncio.gather(*(hold() for _ in range(5)))
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedin()


async def test_one_silent_connection_is_enough_to_replace_the_whole_pool(distant: Database, proxy: Proxy) -> None:
    assert await fill(distant) == 5
    assert await proxy.freeze(new_ones=False) == 5
    async with asyncio.timeout(20):
        with pytest.raises(DBAPIError) as lost:
            await ask(distant)
        assert lost.value.connection_invalidated
        # The other four are silent, too, and need not be found out one by one.
        for _ in range(5):
            assert await ask(distant) == 1


async def test_a_rollback_on_a_silent_connection_is_given_up_in_time(distant: Database, proxy: Proxy) -> None:
    async with asyncio.timeout(20):
        async with UnitOfWork(distant.write) as uow:
            await uow.ledger.sql.fetch(ASKED)
            await proxy.freeze(new_ones=False)
        pool = distant.engine.pool
        assert isinstance(pool, QueuePool)
        assert pool.checkedout() == 0
        assert await ask(distant) == 1


async def test_a_pool_of_silent_connections_is_closed_in_time(settings: Settings, proxy: Proxy) -> None:
    async with asyncio.timeout(20), open_database(through(settings, proxy), "distant") as distant:
        assert await fill(distant) == 5
        assert await proxy.freeze(new_ones=False) == 5


async def test_a_rollback_without_an_answer_is_reported_as_one(distant: Database, proxy: Proxy) -> None:
    async with asyncio.timeout(20), distant.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, services.connections.Connection)
        await proxy.freeze(new_ones=False)
        with pytest.raises(services.connections.ServerSilent, match="did not answer in time"):
            await driver.execute("ROLLBACK;")


@pytest.fixture
async def committing(
    distant: Database, looking: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Task[None]]:
    """A commit that takes the server half a minute. A commit may take a second here, and a job's statement an hour."""
    monkeypatch.setattr(services.connections, "_COMMIT_LIMIT", 1.0)
    await at_each_commit(looking, "PERFORM pg_sleep(30)")
    task = asyncio.create_task(write(distant, "Lamps"))
    await until(looking, f"SELECT count(*) {COMMITTING}")
    yield task
    # Anything that still waits for an answer ends here, so that a test fails instead of hanging.
    await proxy.cut()
    await asyncio.wait([task])


async def test_a_commit_that_is_never_answered_ends_in_time_and_is_cancelled_at_the_server(
    committing: asyncio.Task[None], looking: Database, proxy: Proxy
) -> None:
    await proxy.freeze(new_ones=False)
    # The limit, and then the request to cancel, which is not answered either.
    async with asyncio.timeout(1.0 + 0.5 + 2.0):
        with pytest.raises(DBAPIError) as unknown:
            await committing
    assert outcome_unknown(unknown.value)
    # The server does not notice that the silent connection is gone: only the request can have ended this.
    async with asyncio.timeout(3):
        await until(looking, f"SELECT CASE WHEN count(*) = 0 THEN 1 ELSE 0 END {COMMITTING}")
    assert await rows(looking, CATEGORIES) == [0]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_shutdown_during_a_commit_that_is_never_answered_ends_in_time(
    committing: asyncio.Task[None], distant: Database, proxy: Proxy, cancelled: bool
) -> None:
    # Nor does a request to cancel reach the server.
    await proxy.freeze(new_ones=True)
    if cancelled:
        committing.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(1.0 + 0.5 + 1.0 + 2.0):
        await close(distant.engine)
        await asyncio.wait([committing])
    if cancelled:
        assert committing.cancelled()
    else:
        error = committing.exception()
        assert error is not None
        assert outcome_unknown(error)


async def test_a_statement_on_a_connection_that_falls_silent_ends_with_its_limit(
    settings: Settings, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.connections, "PROMPT", 0.5)
    async with open_polling(through(settings, proxy), time_limit=1.0) as sessions, asyncio.timeout(20):
        async with UnitOfWork(sessions) as uow:
            await uow.ledger.sql.fetch(ASKED)
            await proxy.freeze(new_ones=False)
            with pytest.raises(DBAPIError) as lost:
                await uow.ledger.sql.fetch(ASKED)
            assert lost.value.connection_invalidated
        async with UnitOfWork(sessions) as uow:
            assert len(await uow.ledger.sql.fetch(ASKED)) == 1


async def test_a_rollback_that_is_cancelled_costs_a_poll_loop_its_connection(
    settings: Settings, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_polling(through(settings, proxy), time_limit=5.0) as sessions, asyncio.timeout(20):
        session = sessions()
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
        assert isinstance(driver, services.connections.Connection)
        await Sql.of(session).fetch(ASKED)
        await proxy.freeze(new_ones=False)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert driver.is_closed()
        # SQLAlchemy gave the connection up, so the pool found nothing.
        assert "returned to the pool" not in caplog.text
        async with UnitOfWork(sessions) as uow:
            assert len(await uow.ledger.sql.fetch(ASKED)) == 1


async def test_a_connection_that_was_idle_for_long_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = "SELECT pg_backend_pid()"
    before = await rows(database, pid)
    assert await rows(database, pid) == before
    monkeypatch.setattr(services.connections, "_MAX_IDLE", 0.0)
    await asyncio.sleep(0.01)
    assert await rows(database, pid) != before


async def test_a_session_that_the_server_ended_for_its_own_sake_costs_no_other_connection(settings: Settings) -> None:
    limits = Limits(statement=10.0, lock=10.0, transaction=0.5)
    small = settings.model_copy(update={"database_pool_size": 5})
    async with open_database(small, "test", limits) as opened:
        assert await fill(opened) == 5
        sessions = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'waybill-test' AND datname = current_database()"
        )
        before = set(await rows(opened, sessions))
        with pytest.raises(DBAPIError) as ended:
            await rows(opened, "SELECT pg_sleep(5)")
        assert ended.value.connection_invalidated
        assert len(before & set(await rows(opened, sessions))) == 4


async def test_sockets_to_the_database_detect_that_the_other_side_is_gone(database: Database) -> None:
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, services.connections.Connection)
        found = driver._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        # And so does the server, which releases the locks of clients that are gone.
        assert (await connection.execute(text("SHOW tcp_user_timeout"))).scalar_one() == "20000"
        assert (await connection.execute(text("SHOW tcp_keepalives_idle"))).scalar_one() == "15"
