"""ARQ: Redis instead of PostgreSQL; a watched transaction to start each job, and another to finish it."""

import asyncio
import json
from time import time
from typing import Any, cast

from arq.connections import RedisSettings, create_pool
from arq.constants import default_queue_name, job_key_prefix
from arq.jobs import serialize_job
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func

from benchmarks.peers.drain import Drain, tell

_MAX_JOBS = 10
_CHUNK = 1_000
_A_DAY_MS = 86_400_000


def _serialize(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


async def run(job: dict[str, Any], drain: Drain) -> None:
    pool = await create_pool(
        RedisSettings.from_dsn(job["redis_url"]), job_serializer=_serialize, job_deserializer=json.loads
    )

    async def trivial(_: dict[Any, Any], number: int) -> None:  # noqa: ARG001
        drain.count()

    # What `enqueue_job` writes, a thousand jobs per round trip.
    for first in range(0, drain.jobs, _CHUNK):
        now = int(time() * 1000)
        async with pool.pipeline(transaction=True) as pipe:
            for number in range(first, min(first + _CHUNK, drain.jobs)):
                content = serialize_job("trivial", (number,), {}, None, now, serializer=_serialize)
                pipe.psetex(f"{job_key_prefix}{number}", _A_DAY_MS, content)
                pipe.zadd(default_queue_name, {str(number): now})
            await pipe.execute()
    worker = Worker(
        [func(cast(WorkerCoroutine, trivial), name="trivial")],
        redis_pool=pool,
        queue_name=default_queue_name,
        handle_signals=False,
        max_jobs=_MAX_JOBS,
        keep_result=0,
        poll_delay=0.001,
        log_results=False,
        job_serializer=_serialize,
        job_deserializer=json.loads,
    )

    async def acknowledged() -> bool:
        return bool(await pool.zcard(default_queue_name) == 0)

    working = asyncio.create_task(worker.async_run())
    await drain.wait(acknowledged)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await worker.close()


if __name__ == "__main__":
    tell("arq", f"Redis, JSON, {_MAX_JOBS} jobs at a time, no results kept; no order", run)
