"""Clients that leave before or after their group has begun, and a process that is told to stop: real sockets."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import rows
from tests.faults.edge import LONG, changed
from tests.faults.grouped import (
    FIRST,
    GROUP,
    PATHS,
    Reply,
    Sent,
    Shop,
    Stop,
    api_of,
    assert_each_took_effect_once,
    assert_replies_are_kept,
    group_that_waits,
    group_under_way,
    sizes_of_groups,
    stops,
)
from tests.roles import superuser_of

LEAVE = 2


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Groups, and time to wait for the test's locks."""
    return changed(settings, group_commit=True, group_commit_wait=60.0, **LONG)


async def leave(requests: Sequence[Reply]) -> None:
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
        stops(superuser_of(settings), Stop.in_commit) as stopping,
        api_of(settings, tmp_path / "api.log") as (_, client),
    ):
        waiting = await group_that_waits(client, stopping, shop, path)
        await leave(waiting.replies[:LEAVE])
        await stopping.let_go(FIRST)

        assert (reply := await waiting.first) is not None
        assert reply.status_code == 201
        replies = await asyncio.gather(*waiting.replies[LEAVE:])
        statuses = [reply.status_code for reply in replies if reply is not None]
        assert statuses == [201] * (len(waiting.group) - 1 - LEAVE) + [402]
        assert await stored(database) == stayed(waiting.group)
        assert await sizes_of_groups(database) == [len(waiting.group) - LEAVE]
        await assert_each_took_effect_once(database, client, waiting.group)


@PATHS
async def test_clients_that_leave_after_their_group_has_begun_find_their_replies_under_their_keys(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database)
    async with (
        stops(superuser_of(settings), Stop.in_commit) as stopping,
        api_of(settings, tmp_path / "api.log") as (_, client),
    ):
        group, replies, _ = await group_under_way(client, stopping, shop, path)
        replies.cancel()
        await asyncio.gather(replies, return_exceptions=True)
        await asyncio.sleep(0.3)
        await stopping.let_go(GROUP)
        async with asyncio.timeout(10):
            while await sizes_of_groups(database) != [len(group)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await assert_replies_are_kept(client, group)
        await assert_each_took_effect_once(database, client, group)


@PATHS
async def test_a_process_that_is_told_to_stop_answers_what_waits_for_a_group(
    database: Database, settings: Settings, tmp_path: Path, path: str
) -> None:
    shop = await Shop.opened(database, buyers=30)
    async with stops(superuser_of(settings), Stop.in_commit) as stopping:
        async with api_of(settings, tmp_path / "stopped.log") as (api, client):
            waiting = await group_that_waits(client, stopping, shop, path, many=30)
            api.process.terminate()
            await asyncio.sleep(0.5)
            assert api.lives
            await stopping.let_go(FIRST)

            replies = [await waiting.first, *await asyncio.gather(*waiting.replies)]
            assert [reply.status_code for reply in replies if reply is not None] == [201] * 31 + [402]
            assert await asyncio.to_thread(api.process.wait, 15) in (0, -15)
            assert "Traceback" not in api.said()
        assert await sizes_of_groups(database) == [16, 15]
