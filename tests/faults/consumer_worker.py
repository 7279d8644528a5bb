"""`python -m tests.faults.consumer_worker SECONDS`: the product's worker with one log consumer and short leases.

The handler writes each event into the table `told`, announces itself in `beginnings` over another connection, and
sleeps for so many seconds before its batch is committed.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial

import worker.context
from services.database import make_engine, make_session_factory
from services.outbox.consumers import Consumer
from services.outbox.log.schemas import LoggedEvent
from services.settings import get_settings
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from worker.follower import Follower

LEASE = 2.0


def main(seconds: float) -> None:
    async def handle(uow: UnitOfWork, events: Sequence[LoggedEvent]) -> None:
        for event in events:
            tell = Statement("INSERT INTO told VALUES (:pid, :number)")
            await Sql.of(uow.session).run(tell, pid=os.getpid(), number=event.payload["number"])
        async with UnitOfWork(make_session_factory(make_engine(get_settings(), "test"))) as other:
            await Sql.of(other.session).run(Statement("INSERT INTO beginnings VALUES (:pid)"), pid=os.getpid())
            await other.commit()
        await asyncio.sleep(seconds)

    # Longer than its lease: what a suspended process has done is not cut short by its time limit.
    consumers = (Consumer("feed", handle, batch=10, time_limit=3600),)
    vars(worker.context)["consumers_of"] = lambda _: consumers
    vars(worker.context)["check_consumers"] = lambda *_: None
    vars(worker.context)["Follower"] = partial(Follower, lease=LEASE)
    # Imported here, because it takes the consumers as they are at that time.
    from worker.__main__ import main as work

    work()


if __name__ == "__main__":
    main(float(sys.argv[1]))
