"""Limits in real API processes: two that share them, behind a proxy, and with a Redis that dies or hangs."""

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import httpx2
import pytest

from benchmarks.sessions import session_of
from services.api.rate_classes import RateClass
from services.api.rate_counts import PATIENCE
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded import EmbeddedRedis
from services.settings import Settings
from services.users.models import User
from tests.factories import make_user
from tests.processes import running_api, wait_until

MOST = 60
SECONDS = 30.0
FORWARDED = "FORWARDED_ALLOW_IPS"


@pytest.fixture
def settings(settings: Settings, redis: EmbeddedRedis) -> Settings:
    limits = {"rate_limit_read": MOST, "rate_limit_sign_in": 3, "api_processes": 2}
    return settings.model_copy(update={"redis_url": redis.url(), **limits})


def start(stack: ExitStack, settings: Settings, folder: Path, number: int) -> list[str]:
    urls = [stack.enter_context(running_api(settings, folder / f"api-{one}.log"))[1] for one in range(number)]
    for url in urls:
        wait_until(lambda url=url: answers(url), "the API", SECONDS)  # type: ignore[misc]
    return urls


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=5).is_success
    except httpx2.TransportError:
        return False


async def read(urls: list[str], settings: Settings, user: User, times: int) -> tuple[Counter[int], float]:
    """Read `times` times, from the processes in turn: the number of each status, and the longest time in seconds."""
    headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(user.id))}"}
    statuses: Counter[int] = Counter()
    longest = 0.0
    async with httpx2.AsyncClient(headers=headers, timeout=SECONDS) as client:

        async def one(number: int) -> None:
            nonlocal longest
            began = monotonic()
            reply = await client.get(f"{urls[number % len(urls)]}/v1/users/me")
            longest = max(longest, monotonic() - began)
            statuses[reply.status_code] += 1

        for first in range(0, times, 10):
            await asyncio.gather(*(one(number) for number in range(first, min(times, first + 10))))
    return statuses, longest


async def within_one_window(urls: list[str], settings: Settings, database: Database, times: int) -> Counter[int]:
    """What a user gets who sends this many requests, all of them within a minute of the limits."""
    for _ in range(3):
        user = await make_user(database)
        began = monotonic()
        first, _ = await read(urls[:1], settings, user, 1)
        headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(user.id))}"}
        shown = httpx2.get(f"{urls[0]}/v1/users/me", headers=headers).headers["ratelimit"]
        ends = int(shown.rpartition("t=")[2]) - 1
        found, _ = await read(urls, settings, user, times - 2)
        if monotonic() - began < ends:
            return found + first + Counter({200: 1})
    raise AssertionError("this machine is too slow")


async def test_two_processes_share_a_limit(settings: Settings, database: Database, tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = start(stack, settings, tmp_path, 2)
        found = await within_one_window(urls, settings, database, 2 * MOST)
        assert found.keys() == {200, 429}
        assert MOST - MOST // 20 <= found[200] <= MOST, found


async def test_a_redis_that_hangs_or_dies_neither_opens_nor_closes_nor_delays(
    settings: Settings, database: Database, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        urls = start(stack, settings, tmp_path, 2)
        user = await make_user(database)
        usual = max([(await read(urls, settings, user, 20))[1] for _ in range(2)])
        assert redis.process is not None
        os.kill(redis.process.pid, signal.SIGSTOP)
        try:
            found = await within_one_window(urls, settings, database, 2 * MOST)
            assert found == {200: MOST, 429: MOST}, "half of the limit in each process"
            statuses, longest = await read(urls, settings, await make_user(database), 20)
            assert statuses == {200: 20}
            assert longest < usual + PATIENCE + 2.0
        finally:
            os.kill(redis.process.pid, signal.SIGCONT)
        redis.stop()
        found = await within_one_window(urls, settings, database, 2 * MOST)
        assert found == {200: MOST, 429: MOST}
        redis.start()

        def together() -> bool:
            """Each process needs a request to find out."""
            asked = Counter[int]()
            for url in urls:
                asked[httpx2.get(f"{url}/v1/categories").status_code] += 1
            return all("waybill_rate_limit_shared 1.0" in httpx2.get(f"{url}/metrics").text for url in urls)

        await asyncio.to_thread(wait_until, together, "the processes to count together", SECONDS)
        found = await within_one_window(urls, settings, database, 2 * MOST)
        assert MOST - MOST // 20 <= found[200] <= MOST, found
        logs = "".join((tmp_path / f"api-{one}.log").read_text() for one in range(2))
        assert logs.count("rate limits: Redis does not answer") <= 6, "one line a minute"


@pytest.mark.parametrize("trusted", ["127.0.0.1", "192.0.2.1"])
async def test_x_forwarded_for_is_believed_only_from_a_trusted_proxy(
    settings: Settings, tmp_path: Path, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORWARDED, trusted)
    with ExitStack() as stack:
        (url,) = start(stack, settings.model_copy(update={"api_processes": 1}), tmp_path, 1)

        def attempts(*forwarded: str) -> list[int]:
            """The statuses of these attempts, all of them within a minute of the limits."""
            for _ in range(3):
                left = int(attempt(url, "198.51.100.1").headers["ratelimit"].rpartition("t=")[2])
                began = monotonic()
                found = [attempt(url, each).status_code for each in forwarded]
                if monotonic() - began < left - 1:
                    return found
                time.sleep(max(0.0, began + left - monotonic()))
            raise AssertionError("this machine is too slow")

        found = attempts(*(f"198.51.100.{number}, 203.0.113.{number}" for number in range(6)))
        if trusted == "127.0.0.1":
            assert found == [401] * 6, "each is a client of its own"
            # A client may write anything into the field; what the proxy has added is at its end.
            found = attempts(*(f"198.51.100.{number}, 203.0.113.100" for number in range(6)))
            assert found == [401] * 3 + [429] * 3
        else:
            assert found == [401] * 2 + [429] * 4, "all are the client that has asked for the limit"
        assert RateClass.sign_in in attempt(url, "a").headers["ratelimit"]


def attempt(url: str, forwarded: str) -> httpx2.Response:
    return httpx2.get(f"{url}/v1/users/me", headers={"X-Forwarded-For": forwarded})
