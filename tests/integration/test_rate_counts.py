"""Counting requests in several processes, with a real Redis that answers, is gone, or hangs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from limits.aio.storage import RedisStorage
from redis import Redis

from services.api import rate_counts
from services.api.rate_counts import PARTS, PATIENCE, WINDOW, Counts, Quota, Taken
from services.local.embedded import EmbeddedRedis

START = 1_000_000_020.0
"""A time at which a window begins for callers whose windows are not moved."""
BUSY = 2.0
"""Seconds that a busy machine may add to what should take a moment."""


class Stopped:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Stopped:
    stopped = Stopped()
    monkeypatch.setattr(rate_counts, "CLOCK", stopped)
    monkeypatch.setattr(rate_counts, "crc32", lambda _: 0)
    return stopped


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a Redis that does not answer."""
    monkeypatch.setattr(rate_counts, "PATIENCE", 20.0)


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each trip to Redis asked for."""
    asked: list[int] = []
    incr = RedisStorage.incr

    async def noted(self: RedisStorage, key: str, expiry: int, amount: int = 1) -> int:
        asked.append(amount)
        return await incr(self, key, expiry, amount)

    monkeypatch.setattr(RedisStorage, "incr", noted)
    return asked


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test alone; stopped, it comes back on the same port."""
    with EmbeddedRedis(tmp_path / "redis", durable=False) as server:
        yield server


@asynccontextmanager
async def processes(redis_url: str, number: int) -> AsyncIterator[Sequence[Counts]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Counts(redis_url, "test", number)) for _ in range(number)]


def granted(found: Sequence[Taken]) -> int:
    return sum(one.granted for one in found)


@pytest.fixture
def standing(clock: Stopped, patient: None) -> None:
    """All examples are in one window, each with a caller of its own."""


@hypothesis_settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    most=st.one_of(st.integers(1, 12), st.integers(13, 300)),
    number=st.integers(1, 3),
    bursts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=12),
)
def test_processes_together_let_through_what_the_limit_says(
    redis_url: str, standing: None, most: int, number: int, bursts: list[tuple[int, int]]
) -> None:
    """Never more, and hardly less: what processes own or have taken, and do not need, is a twentieth at most."""
    caller = str(uuid4())

    async def send() -> int:
        async with processes(redis_url, number) as counts:
            quota = Quota("write", most)
            return granted(
                [
                    taken
                    for process, size in bursts
                    for taken in await asyncio.gather(
                        *(counts[process % number].take(quota, caller) for _ in range(size))
                    )
                ]
            )

    sent, let_through = sum(size for _, size in bursts), asyncio.run(send())
    assert let_through <= most
    assert let_through >= min(sent, most if number == 1 else most - 2 * most // PARTS)


async def test_a_caller_may_send_again_when_the_window_ends_and_not_before(
    redis_url: str, clock: Stopped, patient: None
) -> None:
    async with processes(redis_url, 1) as (counts,):
        quota = Quota("read", 3)
        assert [await counts.take(quota, "a") for _ in range(4)] == [
            Taken(True, 2, WINDOW),
            Taken(True, 1, WINDOW),
            Taken(True, 0, WINDOW),
            Taken(False, 0, WINDOW),
        ]
        clock.now = START + WINDOW - 0.001
        assert await counts.take(quota, "a") == Taken(False, 0, 1)
        assert (await counts.take(quota, "b")).granted, "another caller"
        assert (await counts.take(Quota("write", 3), "a")).granted, "another class"
        clock.now = START + WINDOW
        assert await counts.take(quota, "a") == Taken(True, 2, WINDOW)


async def test_callers_begin_their_windows_at_different_times(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    monkeypatch.setattr(rate_counts, "CLOCK", Stopped())
    async with processes(redis_url, 1) as (counts,):
        ends = {(await counts.take(Quota("read", 3), f"caller {number}")).resets_in for number in range(100)}
    assert len(ends) > 30


async def test_most_requests_need_no_trip_and_none_needs_two(
    redis_url: str, clock: Stopped, patient: None, trips: list[int]
) -> None:
    async with processes(redis_url, 1) as (counts,):
        found = [await counts.take(Quota("write", 1000), "a") for _ in range(1200)]
        assert granted(found) == 1000
        assert [one.left for one in found] == [*reversed(range(1000)), *(0 for _ in range(200))]
        assert trips == [1000 // PARTS] * (PARTS - 1), "and none for what is refused"
        trips.clear()
        # Those who come together share one.
        found = await asyncio.gather(*(counts.take(Quota("write", 39), "b") for _ in range(30)))
        assert granted(found) == 30
        assert trips == [30]
        trips.clear()
        for _ in range(5):
            await counts.take(Quota("write", 4), "c")
        assert trips == [1] * 4
        trips.clear()
        # Callers who send little are counted in the part that the process owns.
        for number in range(100):
            assert (await counts.take(Quota("write", 3000), f"caller {number}")).granted
        assert trips == []


async def test_keys_in_redis_expire(redis_url: str, patient: None) -> None:
    async with processes(redis_url, 1) as (counts,):
        await counts.take(Quota("read", 3), "user:7")
    with Redis.from_url(redis_url) as redis:
        (key,) = redis.keys()
        assert key.startswith(b"test:read:user:7:")
        assert WINDOW < redis.ttl(key) <= 2 * WINDOW


async def test_without_redis_each_process_gives_out_its_share(
    redis_url: str, clock: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    async with processes(nowhere, 2) as counts:
        quota = Quota("write", 11)
        for one in counts:
            assert granted([await one.take(quota, "a") for _ in range(11)]) == 6, "half, rounded up"
            clock.now = START + WINDOW
            assert granted([await one.take(quota, "a") for _ in range(11)]) == 6, "neither open nor closed"
            clock.now = START


async def test_what_was_let_through_without_redis_counts_when_it_is_back(
    own: EmbeddedRedis, clock: Stopped, monkeypatch: pytest.MonkeyPatch, trips: list[int]
) -> None:
    monkeypatch.setattr(rate_counts, "PAUSE", 0.0)
    own.stop()
    async with processes(own.url(), 2) as (one, other):
        quota = Quota("write", 20)
        assert granted([await one.take(quota, "a") for _ in range(8)]) == 8
        own.start()
        monkeypatch.setattr(rate_counts, "PATIENCE", 20.0)
        # The first request after the pause does not wait; its trip takes one part, and what was used before.
        deadline = monotonic() + 20
        while one._silent_until is not None:
            assert monotonic() < deadline
            assert (await one.take(quota, "b")).granted is not None
            await asyncio.sleep(0.02)
        trips.clear()
        assert (await one.take(quota, "a")).granted
        assert len(trips) <= 1, "it may have been reported already"
        assert granted([await other.take(quota, "a") for _ in range(20)]) == 11


async def test_a_redis_that_hangs_delays_a_request_once_and_shortly(own: EmbeddedRedis, clock: Stopped) -> None:
    async with processes(own.url(), 1) as (counts,):
        quota = Quota("write", 200)
        assert (await counts.take(quota, "a")).granted
        assert own.process is not None
        os.kill(own.process.pid, signal.SIGSTOP)
        try:
            began = monotonic()
            found = await asyncio.gather(*(counts.take(quota, f"caller {number}") for number in range(100)))
            took = monotonic() - began
            assert granted(found) == 100
            assert took < PATIENCE + BUSY
            began = monotonic()
            found = [await counts.take(quota, f"another {number}") for number in range(100)]
            assert granted(found) == 100
            assert monotonic() - began < 100 * PATIENCE / 2, "they do not wait for it"
            assert granted([await counts.take(quota, "a") for _ in range(300)]) == 199, "the limit holds"
        finally:
            os.kill(own.process.pid, signal.SIGCONT)


async def test_processes_own_no_more_than_the_limit_together(redis_url: str, clock: Stopped, patient: None) -> None:
    async with processes(redis_url, 3) as counts:
        quota = Quota("write", 1000)
        # All of them use up what they own before they ask for more.
        found = [await counts[number % 3].take(quota, "a") for number in range(1500)]
        assert granted(found) == 1000


async def test_a_request_waits_no_longer_than_that_whatever_the_client_does(
    redis_url: str, clock: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> int:
        await asyncio.sleep(PATIENCE + 2 * BUSY)
        return 1

    monkeypatch.setattr(RedisStorage, "incr", never)
    async with processes(redis_url, 1) as (counts,):
        began = monotonic()
        assert granted([await counts.take(Quota("write", 5), "a") for _ in range(10)]) == 5
        assert monotonic() - began < PATIENCE + BUSY


async def test_a_cancelled_request_does_not_cancel_the_trip_of_others(
    redis_url: str, clock: Stopped, patient: None, trips: list[int]
) -> None:
    async with processes(redis_url, 1) as (counts,):
        quota = Quota("write", 39)
        first = asyncio.create_task(counts.take(quota, "a"))
        others = [asyncio.create_task(counts.take(quota, "a")) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert granted(await asyncio.gather(*others)) == 5
        assert len(trips) == 1


async def test_the_number_of_callers_that_are_remembered_is_bounded(
    redis_url: str, clock: Stopped, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_counts, "_MOST_CALLERS", 10)
    async with processes(redis_url, 1) as (counts,):
        quota = Quota("write", 39)
        for number in range(50):
            await counts.take(quota, f"caller {number}")
        assert len(counts._counts) == 10
        # What was forgotten here is still in Redis.
        let_through = 0
        for _ in range(60):
            let_through += (await counts.take(quota, "caller 0")).granted
            for number in range(100, 110):
                await counts.take(Quota("read", 1000), f"caller {number}")
        assert let_through == 38
