"""Clients of a baseline: each has its own connection, and starts the next piece of work when the last is finished."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg

from benchmarks.load import Seen
from benchmarks.usage import Meter

WorkT = TypeVar("WorkT")


async def run_clients(
    job: dict[str, Any], work: Sequence[WorkT], do: Callable[[asyncpg.Connection, WorkT], Awaitable[None]]
) -> Seen:
    """Do the work in turn for the job's `warmup` and measured `seconds`; returns the results of the latter."""
    seen = Seen()
    stopped = measuring = False

    async def client(number: int) -> None:
        connection = await asyncpg.connect(job["database_url"], server_settings={"jit": "off"})
        taken = number
        while not stopped:
            started = time.perf_counter()
            await do(connection, work[taken % len(work)])
            taken += job["clients"]
            if measuring:
                seen.replies += 1
                seen.latencies.append(time.perf_counter() - started)
        await connection.close()

    clients = [asyncio.create_task(client(number)) for number in range(job["clients"])]
    await asyncio.sleep(job["warmup"])
    meter = Meter(os.getpid(), job["postgres_pid"])
    meter.start()
    measuring = True
    await asyncio.sleep(job["seconds"])
    measuring = False
    meter.stop()
    stopped = True
    await asyncio.gather(*clients)
    seen.read(meter, os.getpid())
    return seen
