"""PgQueuer: one connection, large batches; acknowledgements are buffered and written a batch at a time."""

import asyncio
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from benchmarks.peers.drain import Drain, tell

_BATCH_SIZE = 1000
_CHUNK = 10_000


async def run(job: dict[str, Any], drain: Drain) -> None:
    connection = await asyncpg.connect(job["database_url"])
    watch = await asyncpg.connect(job["database_url"])
    queue = PgQueuer(AsyncpgDriver(connection))
    await queue.qm.queries.install()

    async def trivial(_: Job) -> None:
        drain.count()

    queue.entrypoint("trivial")(trivial)
    for first in range(0, drain.jobs, _CHUNK):
        numbers = range(first, min(first + _CHUNK, drain.jobs))
        payloads = [b'{"number": %d}' % number for number in numbers]
        await queue.qm.queries.enqueue(["trivial"] * len(numbers), payloads, [0] * len(numbers))
    await watch.execute("VACUUM ANALYZE pgqueuer")

    async def acknowledged() -> bool:
        return not await watch.fetchval("SELECT EXISTS (SELECT FROM pgqueuer)")

    working = asyncio.create_task(queue.run(batch_size=_BATCH_SIZE))
    await drain.wait(acknowledged)
    queue.shutdown.set()
    await working
    await connection.close()
    await watch.close()


if __name__ == "__main__":
    tell("pgqueuer", f"asyncpg, batches of {_BATCH_SIZE}, buffered acknowledgements; no order", run)
