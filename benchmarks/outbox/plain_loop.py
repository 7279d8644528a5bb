"""The baseline, in a separate process: plain asyncpg, one connection, 100 rows claimed and deleted per commit.

One statement per batch, which is the minimum. It does not keep aggregates in order, does not read or decode events, and
calls no handler.
"""

import os
import time
from typing import Any

import asyncpg

from benchmarks.load import Seen, run_job
from benchmarks.usage import Meter

_CLAIM = """
    DELETE FROM outbox WHERE position = ANY(ARRAY(
        SELECT position FROM outbox ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED
    )) RETURNING position, event_id, aggregate, type
"""


async def run(job: dict[str, Any]) -> Seen:
    seen = Seen()
    meter = Meter(os.getpid(), job["postgres_pid"])
    connection = await asyncpg.connect(job["database_url"], server_settings={"jit": "off"})
    await connection.fetch(_CLAIM, job["batch_size"])
    meter.start()
    while True:
        started = time.perf_counter()
        claimed = await connection.fetch(_CLAIM, job["batch_size"])
        if not claimed:
            break
        seen.replies += len(claimed)
        seen.latencies.append(time.perf_counter() - started)
    meter.stop()
    await connection.close()
    seen.read(meter, os.getpid())
    return seen


if __name__ == "__main__":
    run_job(run)
