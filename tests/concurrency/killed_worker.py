"""`python -m tests.concurrency.killed_worker [--wary]`: processes ticks; one named `bad` kills this process."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from services.database import open_database
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.settings import get_settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, drain


class Killed(TickHandler):
    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        if any(claimed.event.name == "bad" for claimed in events):
            os.kill(os.getpid(), signal.SIGKILL)


async def work(*, wary: bool) -> None:
    async with open_database(get_settings(), "killed") as database:
        engine = Processor(
            lambda: UnitOfWork(database.write),
            [Subscription(Tick, Killed(), plain_sql=True)],
            retry=RetryPolicy(max_attempts=3, base=0.001, cap=0.002),
            batch_size=100,
        )
        if wary:
            engine.be_wary()
        while True:
            await drain(engine)
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(work(wary="--wary" in sys.argv))
