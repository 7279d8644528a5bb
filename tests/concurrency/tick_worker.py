"""`python -m tests.concurrency.tick_worker SEED`: processes ticks, failing now and then, until killed."""

import asyncio
import random
import sys

from sqlalchemy.exc import DBAPIError

from services.database import open_database
from services.settings import get_settings
from tests.concurrency.ticks import SOON, TickHandler, drain, processor


async def work(seed: int) -> None:
    chance = random.Random(seed)
    async with open_database(get_settings(), "ticks") as database:
        engine = processor(database, TickHandler(lambda _: chance.random() < 0.03), retry=SOON, batch_size=20)
        while True:
            try:
                await drain(engine)
            except DBAPIError as error:
                # As the poller does. Only a deadlock victim may get here.
                print(f"rolled back: {getattr(error.orig, 'sqlstate', error)}", flush=True)  # noqa: T201
            await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1])))
