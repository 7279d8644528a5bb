"""Oban for Python: jobs are fetched in batches, and acknowledged one by one in one transaction per batch."""

import json
import sys
from typing import Any

from benchmarks.peers.drain import Drain, tell

_LIMIT = 1000
_CONNECTIONS = 4


async def run(job: dict[str, Any], drain: Drain) -> None:
    from oban import Oban, worker
    from oban.schema import install
    from psycopg_pool import AsyncConnectionPool

    class Trivial:
        async def process(self, _: Any) -> None:
            drain.count()

    trivial = worker(queue="default")(Trivial)
    async with (
        AsyncConnectionPool(job["database_url"], min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool,
        pool.connection() as watch,
    ):
        await install(pool)
        await watch.set_autocommit(True)
        await watch.execute(
            "INSERT INTO oban_jobs (worker, args) SELECT %s, jsonb_build_object('number', n)"
            " FROM generate_series(1, %s) AS n",
            [trivial.new().worker, drain.jobs],
        )
        await watch.execute("VACUUM ANALYZE oban_jobs")

        async def acknowledged() -> bool:
            left = await watch.execute("SELECT FROM oban_jobs WHERE state IN ('available', 'executing') LIMIT 1")
            return await left.fetchone() is None

        async with Oban(pool=pool, queues={"default": _LIMIT}):
            await drain.wait(acknowledged)


if __name__ == "__main__":
    if sys.version_info < (3, 12):
        print(json.dumps({"missing": "it needs Python 3.12: make bench-peers with a newer PEERS_PYTHON"}))
    else:
        tell("oban", f"psycopg pool, {_LIMIT} jobs at a time; no order", run)
