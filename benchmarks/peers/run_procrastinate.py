"""procrastinate: it fetches and finishes each job with separate statements; jobs run concurrently on a pool."""

import asyncio
import logging
from typing import Any

import psycopg
from procrastinate import App, PsycopgConnector

from benchmarks.peers.drain import Drain, tell

_CONCURRENCY = 40
_CONNECTIONS = 10
_CHUNK = 1_000


async def run(job: dict[str, Any], drain: Drain) -> None:
    # It warns about tasks in the main module, which other processes would not find: there are none.
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app = App(connector=PsycopgConnector(conninfo=job["database_url"], min_size=_CONNECTIONS, max_size=_CONNECTIONS))

    async def trivial(number: int) -> None:  # noqa: ARG001
        drain.count()

    task = app.task(name="trivial")(trivial)
    async with app.open_async(), await psycopg.AsyncConnection.connect(job["database_url"], autocommit=True) as watch:
        await app.schema_manager.apply_schema_async()
        for first in range(0, drain.jobs, _CHUNK):
            numbers = range(first, min(first + _CHUNK, drain.jobs))
            await task.batch_defer_async(*({"number": number} for number in numbers))
        await watch.execute("VACUUM ANALYZE procrastinate_jobs")

        async def acknowledged() -> bool:
            return await (await watch.execute("SELECT FROM procrastinate_jobs LIMIT 1")).fetchone() is None

        worker = app.run_worker_async(
            concurrency=_CONCURRENCY, delete_jobs="always", listen_notify=False, install_signal_handlers=False
        )
        working = asyncio.create_task(worker)
        await drain.wait(acknowledged)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


if __name__ == "__main__":
    tell("procrastinate", f"psycopg pool, {_CONCURRENCY} jobs at a time, done ones deleted; no locks", run)
