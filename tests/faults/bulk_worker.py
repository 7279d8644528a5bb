"""`python -m tests.faults.bulk_worker`: processes ticks and runs bulk actions until it is killed."""

import asyncio
from uuid import uuid4

from sqlalchemy.exc import DBAPIError

from services.database import open_database
from services.outbox.subscription import Subscription
from services.settings import get_settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import SOON, Tick, TickHandler, drain, processor
from worker.bulk import BulkRunner


async def work() -> None:
    async with open_database(get_settings(), "ticks") as database:
        engine = processor(database, TickHandler(), retry=SOON, batch_size=50)
        BulkRunner(lambda: UnitOfWork(database.write), [Subscription(Tick, TickHandler())], uuid4()).start()
        while True:
            try:
                await drain(engine)
            except (DBAPIError, OSError) as error:
                # As the poller does: a deadlock's victim, or the server is away.
                print(f"rolled back: {error}", flush=True)  # noqa: T201
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(work())
