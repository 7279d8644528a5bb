"""Records events as the product does, in a separate process: a unit of work, `record`, a commit."""

import asyncio
from typing import Any

from benchmarks.load import Seen, run_job
from benchmarks.outbox.events import Ping
from services.database import SessionFactory, open_database
from services.outbox.events import Trace
from services.settings import get_settings
from services.unit_of_work import UnitOfWork


async def record(factory: SessionFactory, events: int, a_commit: int, aggregates: int, clients: int) -> int:
    """Record that many events, `a_commit` in each transaction, by several clients at once; return the commits."""
    firsts = iter(range(0, events, a_commit))
    commits = 0

    async def client() -> None:
        nonlocal commits
        for first in firsts:
            async with UnitOfWork(factory, trace=Trace(f"benchmark-{first}")) as uow:
                for number in range(first, min(first + a_commit, events)):
                    # A prime, so that the events of a commit are of different aggregates, far apart in an index.
                    uow.record(Ping(key=1 + number * 7919 % aggregates, number=number, text=f"ping {number}"))
                await uow.commit()
            commits += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return commits


async def run(job: dict[str, Any]) -> Seen:
    async with open_database(get_settings(), "recorder") as database:
        return Seen(replies=await record(database.write, **job))


if __name__ == "__main__":
    run_job(run)
