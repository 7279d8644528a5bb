"""The bank test: many clients move credits between few accounts while workers are killed; every read is consistent."""

import asyncio
import random
import time
from collections import Counter
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.catalog.models import Product
from services.database import Database
from services.operations import service as operations
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.faults.test_lost_replies import answers
from tests.processes import Running, running_api, running_worker, wait_until

ACCOUNTS = 8
EACH = Decimal("250.00")
CLIENTS = 32
READERS = 3
SECONDS = 20.0

LOOK = """
    SELECT sum(posted) AS everybody, sum(posted) FILTER (WHERE user_id IS NOT NULL) AS users,
        min(posted - held) FILTER (WHERE user_id IS NOT NULL) AS poorest, min(held) AS least_held,
        (SELECT coalesce(sum(amount), 0) FROM entries) AS entries
    FROM accounts
"""


class Bank:
    """What the clients know, and what they have seen."""

    def __init__(self, client: httpx2.AsyncClient, tokens: Tokens, users: list[User], products: list[Product]) -> None:
        self._client = client
        self._tokens = tokens
        self.users = users
        self._products = products
        self.orders: list[tuple[User, str]] = []
        self.seen: Counter[str] = Counter()
        self.ends = time.monotonic() + SECONDS

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self.ends

    async def post(self, by: User, path: str, body: dict[str, Any]) -> httpx2.Response:
        """Sent again with the same key while the first request is in flight."""
        headers = {"Authorization": f"Bearer {self._tokens.make(session_of(by.id))}", "Idempotency-Key": str(uuid4())}
        while True:
            reply = await self._client.post(path, json=body, headers=headers)
            if reply.status_code != 409 or reply.json()["code"] != "request_in_flight":
                break
            await asyncio.sleep(float(reply.headers["retry-after"]) / 10)
        assert reply.status_code < 500, reply.text
        return reply

    async def trade(self, seed: int) -> None:
        """One client: random transfers, batches, orders and cancellations until the bank closes."""
        chance = random.Random(seed)
        actions = (self._transfer, self._batch, self._order, self._cancel)
        while self.is_open:
            [action] = chance.choices(actions, weights=(60, 15, 20, 5))
            await action(chance, chance.choice(self.users))

    def _item(self, chance: random.Random, sender: User) -> dict[str, Any]:
        recipient = chance.choice([user for user in self.users if user is not sender])
        return {"to_user_id": recipient.id, "amount": f"{chance.randint(1, 9000) / 100:.2f}"}

    async def _transfer(self, chance: random.Random, sender: User) -> None:
        reply = await self.post(sender, "/v1/transfers", self._item(chance, sender))
        assert reply.status_code in (201, 402), reply.text
        self.seen[f"transfer {reply.status_code}"] += 1

    async def _batch(self, chance: random.Random, sender: User) -> None:
        mode = chance.choice(("independent", "atomic"))
        items = [{**self._item(chance, sender), "linked": chance.random() < 0.3} for _ in range(chance.randint(2, 8))]
        items[-1]["linked"] = False
        reply = await self.post(sender, "/v1/transfers/batch", {"mode": mode, "transfers": items})
        assert reply.status_code in ((200,) if mode == "independent" else (200, 402)), reply.text
        if reply.status_code == 200:
            assert len(reply.json()["results"]) == len(items)
        self.seen[f"{mode} batch {reply.status_code}"] += 1

    async def _order(self, chance: random.Random, buyer: User) -> None:
        product = chance.choice([product for product in self._products if product.seller_id != buyer.id])
        items = [{"product_id": product.id, "quantity": chance.randint(1, 3)}]
        reply = await self.post(buyer, "/v1/orders", {"items": items})
        assert reply.status_code == 201, reply.text
        self.orders.append((buyer, reply.json()["id"]))
        self.seen[f"order {reply.json()['status']}"] += 1

    async def _cancel(self, chance: random.Random, _: User) -> None:
        if self.orders:
            buyer, order_id = chance.choice(self.orders)
            reply = await self.post(buyer, f"/v1/orders/{order_id}/cancel", {})
            # The seller may have spent what was paid; the order may have been cancelled before.
            assert reply.status_code in (200, 402, 409), reply.text
            self.seen[f"cancel {reply.status_code}"] += 1


async def look(bank: Bank, url: str) -> None:
    """One reader: each SQL statement sees one moment."""
    connection = await asyncpg.connect(url)
    try:
        while bank.is_open:
            seen = await connection.fetchrow(LOOK)
            assert seen["everybody"] == seen["entries"] == 0, dict(seen)
            assert seen["users"] == EACH * ACCOUNTS, dict(seen)
            assert min(seen["poorest"], seen["least_held"]) >= 0, dict(seen)
            bank.seen["look"] += 1
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def kill(bank: Bank, workers: list[Running]) -> None:
    """Kill a worker, leave the others alone for a while, start it again."""
    chance = random.Random(0)
    while bank.is_open:
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        worker = chance.choice(workers)
        worker.kill()
        bank.seen["kill"] += 1
        await asyncio.sleep(chance.uniform(0, 0.5))
        worker.start_again()


async def test_the_sum_is_exact_and_no_account_is_overdrawn_at_any_moment_while_workers_are_killed(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    users = [await make_user(database, credits=str(EACH)) for _ in range(ACCOUNTS)]
    products = [await make_product(database, seller=user, stock=10**6, price="7.35") for user in users]
    settings = settings.model_copy(update={"outbox_batch_size": 20, "outbox_poll_interval": 0.1})
    with ExitStack() as stack:
        _, url = stack.enter_context(running_api(settings, tmp_path / "api.log"))
        workers = [stack.enter_context(running_worker(settings, tmp_path / f"worker-{n}.log")) for n in range(2)]
        wait_until(lambda: answers(url), "the API")
        async with httpx2.AsyncClient(
            base_url=url, timeout=30, limits=httpx2.Limits(max_connections=CLIENTS)
        ) as client:
            bank = Bank(client, Tokens.from_settings(settings), users, products)
            async with asyncio.TaskGroup() as group:
                for seed in range(CLIENTS):
                    group.create_task(bank.trade(seed))
                for _ in range(READERS):
                    group.create_task(look(bank, database_url))
                group.create_task(kill(bank, workers))
        deadline = time.monotonic() + 60
        while await rows(database, "SELECT count(*) FROM outbox") != [0]:
            assert time.monotonic() < deadline, "the workers did not finish"
            await asyncio.sleep(0.1)

    seen = bank.seen
    # Enough of everything to have met everything else, even on a busy machine.
    happened = ("transfer 201", "transfer 402", "independent batch 200", "atomic batch 200", "order pending")
    assert min(seen[name] for name in (*happened, "look", "kill")) >= 3, seen
    assert await rows(database, "SELECT sum(posted) FROM accounts WHERE user_id IS NOT NULL") == [EACH * ACCOUNTS]
    assert await rows(database, "SELECT count(*) FROM orders WHERE status = 'pending'") == [0]
    assert (await rows(database, "SELECT count(*) FROM orders WHERE status = 'confirmed'"))[0] > 0
    assert await rows(database, "SELECT count(*) FROM dead_letters") == [0]
    async with UnitOfWork(database.read) as uow:
        books = await operations.books(uow)
    assert books.balanced, books
