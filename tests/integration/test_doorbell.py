"""The worker's listener at the doorbell: it waits as long as it should, on one connection."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from services.outbox.doorbell import RINGS_KEPT, Doorbell, DoorbellListener

EAR = "ear"
KEY = "test:doorbell"
CONNECTIONS = "total_connections_received"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """As a worker connects."""
    async with Redis.from_url(redis_url, socket_connect_timeout=1, client_name=EAR) as client:
        yield client


@pytest.fixture
async def operator(redis_url: str) -> AsyncIterator[Redis]:
    """Looks at the server."""
    async with Redis.from_url(redis_url) as client:
        yield client


async def ears(operator: Redis) -> set[str]:
    """The ids of the connections that the worker has; the server gives each id once."""
    return {client["id"] for client in await operator.client_list() if client["name"] == EAR}


async def test_an_idle_worker_keeps_its_connection_over_many_waits(redis: Redis, operator: Redis) -> None:
    listener = DoorbellListener(redis, KEY)
    await listener.wait(0.1)
    kept = await ears(operator)
    before = (await operator.info("stats"))[CONNECTIONS]
    for _ in range(8):
        await listener.wait(0.1)
        assert await ears(operator) == kept
    assert len(kept) == 1
    # Other sessions may use a server that was given to the tests.
    assert (await operator.info("stats"))[CONNECTIONS] - before < 8


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.2])
async def test_a_wait_without_a_ring_lasts_until_its_timeout(redis: Redis, seconds: float) -> None:
    listener = DoorbellListener(redis, KEY)
    for _ in range(2):
        started = monotonic()
        await listener.wait(seconds)
        assert seconds * 0.9 <= monotonic() - started < seconds + 5


async def test_a_ring_ends_a_wait_even_after_many_silent_ones(redis: Redis, redis_url: str) -> None:
    listener = DoorbellListener(redis, KEY)
    for _ in range(3):
        await listener.wait(0.05)
    async with Redis.from_url(redis_url) as ringer, Doorbell(ringer, KEY) as doorbell:
        waiting = asyncio.create_task(listener.wait(30))
        await asyncio.sleep(0.1)
        doorbell.ring()
        async with asyncio.timeout(10):
            await waiting


async def test_rings_that_nobody_hears_become_rare_and_the_last_one_is_kept(
    redis: Redis, operator: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = []
    push = redis.lpush

    async def count(*arguments: Any) -> Any:
        pushed.append(arguments)
        return await push(*arguments)  # type: ignore[misc]

    monkeypatch.setattr(redis, "lpush", count)
    unheard = "test:unheard"
    async with Doorbell(redis, unheard) as doorbell:
        started = monotonic()
        while monotonic() - started < 0.5:
            doorbell.ring()
            await asyncio.sleep(0.003)
        # The first few are the ones that are kept; without the pause, there would be more than a hundred.
        assert len(pushed) <= RINGS_KEPT + 2 + (monotonic() - started) / 0.05
        # Workers hear those that are kept; then the one that was asked for last arrives, too.
        await operator.delete(unheard)
        doorbell.ring()
        assert await DoorbellListener(operator, unheard).wait(10)
    await operator.delete(unheard)


async def test_a_wait_can_be_cancelled_and_the_next_one_hears_the_ring(redis: Redis, redis_url: str) -> None:
    listener = DoorbellListener(redis, KEY)
    cancelled = asyncio.create_task(listener.wait(30))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    async with Redis.from_url(redis_url) as ringer, Doorbell(ringer, KEY) as doorbell:
        waiting = asyncio.create_task(listener.wait(30))
        await asyncio.sleep(0.1)
        doorbell.ring()
        async with asyncio.timeout(10):
            await waiting


async def test_a_redis_that_accepts_and_never_answers_does_not_prolong_a_wait() -> None:
    gone = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with Redis.from_url(f"redis://127.0.0.1:{port}", socket_connect_timeout=1) as redis:
            started = monotonic()
            await DoorbellListener(redis, KEY).wait(0.3)
            assert monotonic() - started < 5
    finally:
        gone.set()
        server.close()
        await server.wait_closed()
