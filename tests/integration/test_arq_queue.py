"""ARQ's queue survives cut connections and unreadable members: no place is lost, and the other jobs run."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from arq import func
from redis.asyncio import Redis

import worker.runner
from tests.proxy import Proxy
from worker.guard import Guard
from worker.runner import ReconnectingWorker

QUEUE = "test:queue"
CUTS = 10


class Ran(list[str]):
    """The ids of the jobs that have run."""

    async def job(self, ctx: dict[str, Any]) -> None:
        self.append(ctx["job_id"])

    async def wait_for(self, *ids: str) -> None:
        for _ in range(400):
            if set(ids) <= set(self):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{ids} did not all run within 20 s, but {self}")


@asynccontextmanager
async def working(redis_url: str, ran: Ran) -> AsyncIterator[ReconnectingWorker]:
    """A worker for ARQ's queue only, with few places, that polls often."""

    async def startup(ctx: dict[str, Any]) -> None:
        # No guard over this process: only what waits for one.
        guard = ctx["guard"] = Guard(3600.0)
        guard._broken = asyncio.get_running_loop().create_future()

    arq = ReconnectingWorker(
        redis_url,
        functions=[func(ran.job, name="job")],
        queue_name=QUEUE,
        on_startup=startup,
        max_jobs=3,
        poll_delay=0.02,
        keep_result=0,
        job_serializer=lambda job: json.dumps(job).encode(),
        job_deserializer=json.loads,
        handle_signals=False,
    )
    serving = asyncio.create_task(arq.serve())
    try:
        yield arq
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def put(redis: Redis, job_id: str, **content: Any) -> None:
    now = int(time.time() * 1000)
    job = {"t": 1, "f": "job", "a": [], "k": {}, "et": now} | content
    await redis.set(f"arq:job:{job_id}", json.dumps(job))
    await redis.zadd(QUEUE, {job_id: now})


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited 30 s in vain for {what}")


@pytest.fixture(autouse=True)
def _try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.runner, "_LONGEST_WAIT", 0.05)


async def test_jobs_run_after_more_cuts_in_the_middle_of_taking_one_than_there_are_places(redis_url: str) -> None:
    ran = Ran()
    async with Proxy(redis_url) as proxy, Redis.from_url(redis_url) as redis:
        proxy.cut = lambda data: proxy.cuts < CUTS and b"WATCH" in data
        async with working(proxy.url, ran) as arq:
            await put(redis, "first")
            await until(lambda: proxy.cuts == CUTS, "the cuts")
            await put(redis, "second")
            await ran.wait_for("first", "second")
            assert arq.job_counter == 0
        assert await redis.zcard(QUEUE) == 0


UNREADABLE: dict[str, Callable[[Redis], Any]] = {
    "an id that is not UTF-8": lambda redis: redis.zadd(QUEUE, {b"\xff\xfe": 1}),
    "a function that is not a name": lambda redis: put(redis, "bad", f=["job"]),
    "a time that is not one": lambda redis: put(redis, "bad", et="yesterday"),
    "a content that is not JSON": lambda redis: put_raw(redis, b"\x80"),
    "arguments that the job does not take": lambda redis: put(redis, "bad", a=[1]),
}


async def put_raw(redis: Redis, raw: bytes) -> None:
    await redis.set("arq:job:bad", raw)
    await redis.zadd(QUEUE, {"bad": 1})


@pytest.mark.parametrize("place", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_unreadable_members_leave_the_queue_with_one_line_and_the_others_run(
    redis_url: str, caplog: pytest.LogCaptureFixture, place: Callable[[Redis], Any]
) -> None:
    ran = Ran()
    async with Redis.from_url(redis_url) as redis, working(redis_url, ran):
        await place(redis)
        await put(redis, "good")
        await ran.wait_for("good")
        for _ in range(100):
            if not await redis.zcard(QUEUE):
                break
            await asyncio.sleep(0.05)
        await put(redis, "later")
        await ran.wait_for("later")
        assert await redis.zrange(QUEUE, 0, -1) in ([], [b"later"])
    assert ran == ["good", "later"]
    assert len([line for line in caplog.records if line.levelno >= logging.ERROR]) == 1, caplog.text


async def test_a_redis_that_falls_silent_is_left_alone_until_it_answers_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker.runner, "REDIS_PATIENCE", 0.2)
    ran = Ran()
    async with Proxy(redis_url) as proxy, Redis.from_url(redis_url) as redis:
        async with working(proxy.url, ran):
            await put(redis, "before")
            await ran.wait_for("before")
            proxy.silent = True
            await until(lambda: "Redis is unreachable" in caplog.text, "the worker to notice")
            await put(redis, "meanwhile")
            proxy.silent = False
            await ran.wait_for("meanwhile")
        proxy.silent = True
