"""A group's API, backend or server ends before, during or after its COMMIT: no acknowledged request is lost or doubled.

Each key has one definite answer afterwards. Real processes; the groups stop where the test wants them to.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import psycopg
import pytest
from alembic import command
from sqlalchemy import make_url

from migrations.config import alembic_config
from services.database import Database, open_database
from services.local.embedded import EmbeddedPostgres
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.conftest import settings_for
from tests.faults.edge import LONG, changed
from tests.faults.grouped import (
    GROUP,
    PATHS,
    Client,
    Shop,
    Stop,
    api_of,
    assert_each_took_effect_once,
    assert_replies_are_kept,
    group_under_way,
    sizes_of_groups,
    stops,
)
from tests.faults.storm.proxy import Proxy
from tests.processes import running
from tests.roles import superuser_of


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Groups, and time to wait for the test's locks."""
    return changed(settings, group_commit=True, **LONG)


@asynccontextmanager
async def behind_proxy(settings: Settings) -> AsyncIterator[tuple[Proxy, Settings]]:
    """A proxy before the database, and the settings of a process that uses it."""
    url = make_url(settings.database_url)
    assert url.port is not None
    proxy = Proxy(url.port)
    await proxy.open()
    try:
        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        yield proxy, changed(settings, database_url=through)
    finally:
        await proxy.close()


def statuses_of(replies: Sequence[httpx2.Response | None]) -> list[int]:
    """The statuses of the replies that have come."""
    return [reply.status_code for reply in replies if reply is not None]


def assert_no_one_was_misled(replies: Sequence[httpx2.Response | None], number: int) -> None:
    """Every client has an answer: a final one, or that the outcome is unknown and the request can be sent again."""
    statuses = statuses_of(replies)
    assert len(statuses) == number
    assert set(statuses) <= {201, 402, 503}, statuses
    assert all("retry-after" in reply.headers for reply in replies if reply is not None and reply.status_code == 503)


@PATHS
@pytest.mark.parametrize("where", Stop)
async def test_an_api_killed_before_or_in_the_commit_of_a_group_leaves_each_request_done_once(
    database: Database, settings: Settings, tmp_path: Path, path: str, where: Stop
) -> None:
    shop = await Shop.opened(database)
    async with stops(superuser_of(settings), where) as stopping:
        async with api_of(settings, tmp_path / "killed.log") as (api, client):
            group, replies, _ = await group_under_way(client, stopping, shop, path)
            api.kill()
            assert await replies == [None] * len(group)
        await stopping.let_go(GROUP)
        async with api_of(settings, tmp_path / "api.log") as (_, client):
            await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_an_api_killed_after_the_commit_of_a_group_has_kept_the_replies_of_all(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    port = any_free_port()
    async with stops(superuser_of(settings), Stop.in_commit) as stopping:
        with running(["-m", "tests.faults.lossy_api", str(port), GROUP], settings, tmp_path / "lossy.log") as api:
            async with Client(f"http://127.0.0.1:{port}", settings) as client:
                await client.wait_until_ready()
                group, replies, _ = await group_under_way(client, stopping, shop, path)
                await stopping.let_go(GROUP)
                assert await replies == [None] * len(group)
            assert await asyncio.to_thread(api.process.wait, 15) == -signal.SIGKILL
        assert await sizes_of_groups(database) == [len(group)]
        async with api_of(settings, tmp_path / "api.log") as (_, client):
            await assert_replies_are_kept(client, group)
            await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_a_backend_terminated_in_the_commit_of_a_group_leaves_each_request_done_once(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        stops(superuser_of(settings), Stop.in_commit) as stopping,
        api_of(settings, tmp_path / "api.log") as (_, client),
    ):
        group, replies, pid = await group_under_way(client, stopping, shop, path)
        await rows(database, f"SELECT pg_terminate_backend({pid}, 5000)")
        await stopping.let_go(GROUP)
        assert_no_one_was_misled(await replies, len(group))
        await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_an_unconfirmed_group_that_was_committed_is_found_by_its_keys_and_everyone_gets_their_answer(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        behind_proxy(settings) as (proxy, proxied),
        stops(superuser_of(settings), Stop.in_commit) as stopping,
        api_of(proxied, tmp_path / "api.log") as (_, client),
    ):
        group, replies, pid = await group_under_way(client, stopping, shop, path)
        # The server commits, and its answer is lost.
        await proxy.freeze(False)
        await stopping.let_go(GROUP)
        busy = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state <> 'idle'"
        while await rows(database, busy):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await sizes_of_groups(database) == [len(group)]
        await proxy.thaw()
        assert statuses_of(await replies) == [201] * (len(group) - 1) + [402]
        await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_a_group_that_is_still_being_committed_when_its_connection_is_lost_is_not_carried_out_twice(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        behind_proxy(settings) as (proxy, proxied),
        stops(superuser_of(settings), Stop.in_commit) as stopping,
        api_of(proxied, tmp_path / "api.log") as (_, client),
    ):
        group, replies, _ = await group_under_way(client, stopping, shop, path)
        # The backend does not know that its client is gone: the group is committed a little later.
        await proxy.cut()
        await asyncio.sleep(0.5)
        await stopping.let_go(GROUP)
        assert statuses_of(await replies) == [201] * (len(group) - 1) + [402]
        await assert_each_took_effect_once(database, client, group)
        assert await sizes_of_groups(database) == [len(group)], "it was committed after all, once"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated server of this test alone."""
    with EmbeddedPostgres(tmp_path / "postgres", settings={"fsync": "off"}) as server:
        command.upgrade(alembic_config(server.url()), "head")
        yield server


@PATHS
@pytest.mark.parametrize("whole", [False, True], ids=["one backend", "the whole server"])
async def test_postgresql_killed_in_the_commit_of_a_group_leaves_each_request_done_once(
    postgres: EmbeddedPostgres, redis_url: str, tmp_path: Path, path: str, whole: bool
) -> None:
    settings = changed(settings_for(postgres.url(), redis_url), group_commit=True, **LONG)
    async with open_database(settings, "test") as database, api_of(settings, tmp_path / "api.log") as (_, client):
        shop = await Shop.opened(database)
        async with stops(superuser_of(settings), Stop.in_commit) as stopping:
            group, replies, pid = await group_under_way(client, stopping, shop, path)
            kill(postgres, pid, whole=whole)
            # The lock goes with the server.
            with suppress(psycopg.OperationalError):
                await stopping.let_go(GROUP)
            if whole:
                postgres.start()
            assert_no_one_was_misled(await replies, len(group))
        await client.wait_until_ready()
        await assert_each_took_effect_once(database, client, group)


def kill(postgres: EmbeddedPostgres, backend: int, *, whole: bool) -> None:
    """SIGKILL to the backend, after which the server ends all others, or to the server's first process."""
    if not whole:
        os.kill(backend, signal.SIGKILL)
        return
    assert postgres.process is not None
    postgres.process.kill()
    postgres.process.wait()
