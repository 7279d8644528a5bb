"""The baseline of a statement's export, in a separate process: plain asyncpg, one transaction with a cursor.

A thousand rows at a time become CSV, which is discarded.
"""

import csv
import io
import os
import time
from typing import Any

import asyncpg

from benchmarks.load import Seen, run_job
from benchmarks.usage import Meter

_LINES = """
    SELECT entries.version, entries.created_at, kind, entries.amount, balance, transfer_id, order_id, note
    FROM entries JOIN transfers ON transfers.id = transfer_id JOIN accounts ON accounts.id = account_id
    WHERE accounts.user_id = $1 ORDER BY entries.version
"""


async def run(job: dict[str, Any]) -> Seen:
    seen = Seen()
    connection = await asyncpg.connect(job["database_url"], server_settings={"jit": "off"})
    meter = Meter(os.getpid(), job["postgres_pid"])
    meter.start()
    started = time.perf_counter()
    async with connection.transaction():
        cursor = await connection.cursor(_LINES, job["user_id"])
        while rows := await cursor.fetch(1000):
            text = io.StringIO(newline="")
            csv.writer(text).writerows(rows)
            seen.replies += text.getvalue().encode().count(b"\r\n")
            seen.latencies.append(time.perf_counter() - started)
    meter.stop()
    seen.read(meter, os.getpid())
    await connection.close()
    return seen


if __name__ == "__main__":
    run_job(run)
