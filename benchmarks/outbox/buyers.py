"""Buyers, in a separate process: orders at random times, whether or not earlier ones are finished (an open loop).

Each is placed as by the API: the same service in a unit of work, a commit, and the doorbell.
"""

import asyncio
import logging
import random
import time
from typing import Any

from redis.asyncio import Redis

from benchmarks.load import Seen, run_job
from services.collector import spare_what_stays
from services.database import open_database
from services.fields import new_id
from services.keys import Keys
from services.orders import service as orders
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.outbox.doorbell import Doorbell
from services.settings import get_settings
from services.unit_of_work import OpenUnitOfWork, UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Role


class Buyers:
    """State that concurrent orders share."""

    def __init__(self, job: dict[str, Any], open_order: OpenUnitOfWork) -> None:
        self._job = job
        self._open = open_order
        self._patience = orders.Patience.from_settings(get_settings())
        self._chance = random.Random(job["seed"])
        self.seen = Seen()

    async def place_all(self) -> None:
        """Place `rate` orders per second for `seconds`; a latency is from an order's due time to its commit."""
        started = time.perf_counter()
        due = self._gap()
        async with asyncio.TaskGroup() as group:
            while due < self._job["seconds"]:
                await asyncio.sleep(started + due - time.perf_counter())
                group.create_task(self._place(started + due, counted=due >= self._job["warmup"]))
                due += self._gap()
        self.seen.seconds = time.perf_counter() - started

    def _gap(self) -> float:
        return self._chance.expovariate(self._job["rate"])

    async def _place(self, due: float, *, counted: bool) -> None:
        buyer = SignedIn(self._chance.choice(self._job["buyer_ids"]), "Buyer", Role.customer, new_id())
        products = self._chance.sample(self._job["product_ids"], self._job["items"])
        items = [OrderItemCreate(product_id=product_id, quantity=self._chance.randint(1, 3)) for product_id in products]
        async with self._open() as uow:
            await orders.place(uow, buyer, OrderCreate(items=items), self._patience)
            await uow.commit()
        if counted:
            self.seen.replies += 1
            self.seen.latencies.append(time.perf_counter() - due)


async def run(job: dict[str, Any]) -> Seen:
    # Redis may be down on purpose.
    logging.getLogger("services.outbox.doorbell").setLevel(logging.ERROR)
    settings = get_settings()
    redis = Redis.from_url(settings.redis_url, socket_connect_timeout=1, socket_timeout=1)
    key = Keys.of(settings).doorbell
    async with open_database(settings, "buyers") as database, redis, Doorbell(redis, key) as doorbell:
        buyers = Buyers(job, lambda: UnitOfWork(database.write, doorbell))
        # As in the API: a full collection would delay orders, and the ring after a commit, by 50 ms.
        spare_what_stays()
        await buyers.place_all()
    return buyers.seen


if __name__ == "__main__":
    run_job(run)
