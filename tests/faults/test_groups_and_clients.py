"""Clients that leave before or after their group has begun, and a process that is told to stop: real sockets."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.faults.edge import LONG, changed
from tests.faults.grouped import (
    FIRST,
    GROUP,
    Sent,
    Shop,
    Stop,
    assert_each_took_effect_once,
    group_under_way,
    sizes_of_groups,
    stops,
)
from tests.faults.test_group_commit import PATHS, api_of

LEAVE = 3


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Groups, and time to wait for the test's locks."""
    return changed(settings, group_commit=True, group_commit_wait=60.0, **LONG)


async def leave(requests: Sequence["asyncio.Task[httpx2.Response | None]"]) -> None:
    """The clients of these requests close their connections."""
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    # The server has to notice.
    await asyncio.sleep(0.3)


def stayed(group: Sequence[Sent]) -> list[str]:
    return sorted(one.key for one in group[LEAVE:])


async def stored(database: Database) -> list[str]:
    return await rows(database, "SELECT key FROM idempotency_keys WHERE key LIKE 'group-%' ORDER BY key")


@PATHS
async def test_clients_that_leave_before_their_group_begins_have_no_effect_and_their_keys_are_free(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        stops(settings.database_url, Stop.in_commit) as stopping,
        api_of(settings, tmp_path / "api.log") as (_, client),
    ):
        await stopping.hold(FIRST)
        [first] = shop.requests(path, FIRST, 1)
        ahead = asyncio.create_task(client.send(first))
        await stopping.stopped()
        group = shop.requests(path, GROUP, 8)
        requests = [asyncio.create_task(client.send(one)) for one in group]
        await asyncio.sleep(0.5)
        await leave(requests[:LEAVE])
        await stopping.let_go(FIRST)

        assert (reply := await ahead) is not None
        assert reply.status_code == 201
        statuses = [reply.status_code for reply in await asyncio.gather(*requests[LEAVE:]) if reply is not None]
        assert statuses == [201] * (8 - LEAVE) + [402]
        assert await stored(database) == stayed(group)
        assert await sizes_of_groups(database) == [len(group) - LEAVE]
        await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_clients_that_leave_after_their_group_has_begun_find_their_replies_under_their_keys(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        stops(settings.database_url, Stop.in_commit) as stopping,
        api_of(settings, tmp_path / "api.log") as (_, client),
    ):
        async with group_under_way(client, stopping, shop, path) as (group, replies, _):
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)
            await asyncio.sleep(0.3)
            await stopping.let_go(GROUP)
        async with asyncio.timeout(10):
            while await sizes_of_groups(database) != [len(group)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for one in group:
            reply = await client.send(one)
            assert reply is not None
            assert reply.headers["idempotency-replayed"] == "true"
        await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_a_process_that_is_told_to_stop_answers_what_waits_for_a_group(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database, buyers=30)
    async with stops(settings.database_url, Stop.in_commit) as stopping:
        async with api_of(settings, tmp_path / "stopped.log") as (api, client):
            await stopping.hold(FIRST)
            [first] = shop.requests(path, FIRST, 1)
            ahead = asyncio.create_task(client.send(first))
            await stopping.stopped()
            group = shop.requests(path, GROUP, 30)
            requests = [asyncio.create_task(client.send(one)) for one in group]
            await asyncio.sleep(0.5)
            api.process.terminate()
            await asyncio.sleep(0.5)
            assert api.lives
            await stopping.let_go(FIRST)

            replies = [await ahead, *await asyncio.gather(*requests)]
            assert [reply.status_code for reply in replies if reply is not None] == [201] * 31 + [402]
            assert await asyncio.to_thread(api.process.wait, 15) in (0, -15)
            assert "Traceback" not in api.said()
        assert await sizes_of_groups(database) == [31]
