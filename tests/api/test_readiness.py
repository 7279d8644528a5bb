"""Readiness says in bounded time what is wrong, and does not fail just because something is busy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx2
import psycopg
from psycopg import sql
from sqlalchemy import make_url

from services.api.state import ApiState
from services.app import create_app
from services.settings import Settings
from tests.api.client import Api
from tests.api.test_unavailable import refusing_connections
from tests.conftest import Administrator

WELL = {
    "ready": True,
    "database": "ok",
    "tables": "ok",
    "redis": "ok",
    "replica": "none",
    "canary": "ok",
    "clock": "ok",
}
SESSIONS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[httpx2.AsyncClient, ApiState]]:
    """The application with these settings, after its canary's first attempt."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        state: ApiState = app.state.waybill
        await until(lambda: _is(state.canary.state != "pending"))
        yield client, state


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition is met; a minute allows for busy machines."""
    async with asyncio.timeout(60):
        while True:
            if await met():
                return
            await asyncio.sleep(0.02)


async def _is(value: bool) -> bool:
    return value


async def readiness(client: httpx2.AsyncClient) -> tuple[int, dict[str, Any], str | None]:
    reply = await client.get("/readyz")
    return reply.status_code, reply.json(), reply.headers.get("retry-after")


async def until_it_says(client: httpx2.AsyncClient, **expected: Any) -> int:
    """Wait until readiness says so; returns the status."""
    status = 0

    async def says_so() -> bool:
        nonlocal status
        status, said, _ = await readiness(client)
        return expected.items() <= said.items()

    await until(says_so)
    return status


@contextmanager
def read_only(administrator: Administrator, settings: Settings) -> Iterator[None]:
    """The primary has moved: this server refuses writes, and ended the sessions it had."""
    name = make_url(settings.database_url).database
    assert name is not None
    alter = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    administrator.execute(alter.format(sql.Identifier(name), sql.SQL("on")))
    administrator.execute(SESSIONS, (name,))
    try:
        yield
    finally:
        administrator.execute(alter.format(sql.Identifier(name), sql.SQL("off")))
        administrator.execute(SESSIONS, (name,))


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """The port of a server that accepts connections but never answers."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(1024):
                pass
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class Line:
    """Passes bytes between the API and PostgreSQL until it is told to hold them back."""

    def __init__(self, settings: Settings) -> None:
        self._server = settings.async_url()
        self.open = asyncio.Event()
        self.open.set()
        self._carrying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def carried(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                for task in self._carrying:
                    task.cancel()
                await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await self._connect()
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._carry(source, target))
            self._carrying.add(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = self._server.query.get("host")
        if isinstance(folder, str) and folder.startswith("/"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{self._server.port or 5432}")
        return await asyncio.open_connection(self._server.host, self._server.port)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.open.wait()
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()


async def test_health_and_readiness_answer_without_a_token(api: Api) -> None:
    assert (await api.get("/healthz")).json() == {"status": "ok"}
    assert await until_it_says(api.client, **WELL) == 200


async def test_a_database_that_refuses_connections_is_unreachable(
    settings: Settings, administrator: Administrator
) -> None:
    async with running(settings) as (client, _):
        with refusing_connections(administrator, settings):
            # Redis has 100 ms to answer, which a first connection may not keep on a busy machine.
            await readiness(client)
            said = await readiness(client)
            alive = await client.get("/healthz")
        assert said == (503, {**WELL, "ready": False, "database": "unreachable"}, "1")
        assert alive.status_code == 200
        assert await until_it_says(client, **WELL) == 200


async def test_sessions_that_the_server_ended_are_replaced_and_not_reported(
    settings: Settings, administrator: Administrator
) -> None:
    async with running(settings) as (_, state):
        assert await state.probe.database() == "ok"
        administrator.execute(SESSIONS, (make_url(settings.database_url).database,))
        assert await state.probe._look_at_database() == "ok"


async def test_a_database_that_refuses_writes_makes_the_process_unready(
    settings: Settings, administrator: Administrator
) -> None:
    async with running(settings) as (client, _):
        with read_only(administrator, settings):
            said = await readiness(client)
        assert said == (503, {**WELL, "ready": False, "database": "read_only"}, "1")
        assert await until_it_says(client, **WELL) == 200


async def test_a_silent_database_is_unreachable_until_it_answers_again(settings: Settings) -> None:
    line = Line(settings)
    async with line.carried() as port:
        url = settings.async_url().set(host="127.0.0.1", port=port, query={}, drivername="postgresql")
        through = settings.model_copy(update={"database_url": url.render_as_string(hide_password=False)})
        async with running(through) as (client, _):
            assert (await readiness(client))[0] == 200
            line.open.clear()
            assert await until_it_says(client, database="unreachable") == 503
            line.open.set()
            assert await until_it_says(client, **WELL) == 200


async def test_an_unreachable_redis_is_reported_but_does_not_make_the_process_unready(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    async with running(away) as (client, _):
        assert await readiness(client) == (200, {**WELL, "redis": "unreachable"}, None)


async def test_a_silent_redis_is_reported_while_its_answer_is_still_awaited(settings: Settings) -> None:
    async with silent_server() as port:
        silent = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})
        async with running(silent) as (client, state):
            said = await readiness(client)
            looking = state.probe._redis_answers._looking
            assert looking is not None
            assert not looking.done(), "readiness waited for Redis"
    assert said == (200, {**WELL, "redis": "unreachable"}, None)


async def test_an_exhausted_pool_and_locked_tables_do_not_affect_readiness_and_metrics(
    settings: Settings, database_url: str
) -> None:
    small = settings.model_copy(update={"database_pool_size": 2, "database_max_overflow": 0})
    async with running(small) as (client, state), AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(state.database.engine.connect())
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE users, orders, accounts, canaries, idempotency_keys IN ACCESS EXCLUSIVE MODE")
            assert await readiness(client) == (200, WELL, None)
            scraped = (await client.get("/metrics")).text
    assert "waybill_database_up 1.0" in scraped
    assert 'waybill_database_pool_connections{pool="write",state="in_use"} 2.0' in scraped
    assert 'waybill_database_pool_connections{pool="write",state="idle"} 0.0' in scraped


async def test_a_scrape_that_hangs_takes_no_connection_from_readiness(settings: Settings, database_url: str) -> None:
    async with running(settings) as (client, state):
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            scrapes = [asyncio.create_task(client.get("/metrics")) for _ in range(5)]
            await until(lambda: _is(state.probe.scraping.locked()))
            await asyncio.sleep(0.1)
            assert await state.probe._look_at_database() == "ok"
            other.rollback()
        replies = await asyncio.gather(*scrapes)
    assert all("waybill_database_up 1.0" in reply.text for reply in replies)


async def test_a_storm_of_probes_causes_one_look(settings: Settings, administrator: Administrator) -> None:
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'waybill-api-probe'"
    async with running(settings) as (client, _):
        replies = await asyncio.gather(*(readiness(client) for _ in range(200)))
        found = administrator.execute(connections, (make_url(settings.database_url).database,)).fetchone()
    assert {status for status, _, _ in replies} == {200}
    assert found == (1,)
