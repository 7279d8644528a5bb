"""Redis is a hint: without it orders are accepted and confirmed, and when it is back so are jobs and the doorbell."""

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
from arq import create_pool
from arq.connections import RedisSettings
from redis import Redis

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.catalog.models import Product
from services.database import Database
from services.local.embedded import EmbeddedRedis
from services.operations import service as operations
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.factories import make_product, make_user
from tests.processes import running_api, running_worker, wait_until
from tests.roles import superuser_of

SECONDS = 30.0
# Spelled out: importing the worker's settings reads the environment of this process.
QUEUE = "waybill:public:jobs"


def serialize(job: dict[str, Any]) -> bytes:
    return json.dumps(job).encode()


@pytest.fixture
def settings(settings: Settings, redis: EmbeddedRedis) -> Settings:
    return settings.model_copy(update={"redis_url": redis.url()})


class Shop:
    """A buyer who places orders over HTTP, and the state of those orders."""

    def __init__(self, url: str, settings: Settings, buyer: User, product: Product) -> None:
        self._url = url
        self._product_id = product.id
        self._headers = {"Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(buyer.id))}"}
        self._database_url = settings.database_url

    def wait_until_open(self) -> None:
        wait_until(self._answers, "the API", SECONDS)

    def place(self, orders: int = 1) -> None:
        """Place orders; each must be accepted."""
        for _ in range(orders):
            placed = httpx2.post(
                f"{self._url}/v1/orders",
                json={"items": [{"product_id": self._product_id, "quantity": 1}]},
                headers={**self._headers, "Idempotency-Key": str(uuid4())},
                timeout=SECONDS,
            )
            assert placed.status_code == 201, placed.text

    def wait_until_confirmed(self, orders: int, seconds: float = SECONDS) -> None:
        with psycopg.connect(self._database_url, autocommit=True) as watch:
            counting = "SELECT count(*) FROM orders WHERE status = 'confirmed'"
            wait_until(lambda: watch.execute(counting).fetchone() == (orders,), f"{orders} confirmed orders", seconds)

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self._url}/healthz", timeout=5).is_success
        except httpx2.TransportError:
            return False


async def open_shop(stack: ExitStack, database: Database, settings: Settings, folder: Path) -> Shop:
    buyer = await make_user(database, credits="1000.00")
    product = await make_product(database, price="1.00", stock=1000)
    _, url = stack.enter_context(running_api(settings, folder / "api.log"))
    shop = Shop(url, settings, buyer, product)
    shop.wait_until_open()
    return shop


async def test_orders_are_accepted_and_confirmed_while_redis_is_away_and_jobs_run_when_it_is_back(
    database: Database, settings: Settings, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        worker = stack.enter_context(running_worker(settings, tmp_path / "worker.log"))
        shop = await open_shop(stack, database, settings, tmp_path)
        shop.place(3)
        shop.wait_until_confirmed(3)

        redis.stop()
        shop.place(20)
        shop.wait_until_confirmed(23)
        wait_until(lambda: "Redis is unreachable" in worker.said(), "the worker to notice", SECONDS)
        assert worker.lives

        redis.start()
        await prune_keys_by_a_job(settings)
        shop.place(3)
        shop.wait_until_confirmed(26)
        assert worker.lives
    async with UnitOfWork(database.read) as uow:
        assert (await operations.books(uow)).balanced


async def test_a_worker_that_starts_while_redis_is_away_processes_orders_and_runs_jobs_later(
    database: Database, settings: Settings, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    redis.stop()
    with ExitStack() as stack:
        shop = await open_shop(stack, database, settings, tmp_path)
        shop.place(5)
        worker = stack.enter_context(running_worker(settings, tmp_path / "worker.log"))
        shop.wait_until_confirmed(5)
        shop.place(5)
        shop.wait_until_confirmed(10)

        redis.start()
        await prune_keys_by_a_job(settings)
        assert worker.lives


async def test_the_doorbell_wakes_the_worker_again_when_redis_is_back(
    database: Database, settings: Settings, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    # Long enough to tell a ring from the timer, also on a busy machine.
    interval = 15.0
    settings = settings.model_copy(update={"outbox_poll_interval": interval})
    with ExitStack() as stack, Redis.from_url(redis.url()) as operator:
        worker = stack.enter_context(running_worker(settings, tmp_path / "worker.log"))
        shop = await open_shop(stack, database, settings, tmp_path)
        wait_until(lambda: listening_since(operator) is not None, "the worker to listen", SECONDS)
        redis.stop()
        redis.start()

        # At the beginning of an interval; otherwise its end might wake the worker.
        wait_until(lambda: listening_since(operator) in (0, 1), "the worker to listen anew", SECONDS)
        shop.place()
        shop.wait_until_confirmed(1, seconds=interval * 2 / 3)
        assert worker.lives


def listening_since(operator: Redis) -> int | None:
    """Seconds for which the worker has waited at the doorbell; None while it does not."""
    clients: list[dict[str, str]] = operator.client_list()  # type: ignore[assignment]
    return next((int(client["idle"]) for client in clients if client["cmd"] == "blpop"), None)


async def prune_keys_by_a_job(settings: Settings) -> None:
    """Enqueue the job that prunes idempotency keys, and wait until there are none of the old ones."""
    pool = await create_pool(
        RedisSettings.from_dsn(settings.redis_url), job_serializer=serialize, default_queue_name=QUEUE
    )
    with psycopg.connect(superuser_of(settings), autocommit=True) as watch:
        assert watch.execute("UPDATE idempotency_keys SET created_at = now() - interval '7 days'").rowcount > 0
        try:
            assert await pool.enqueue_job("prune_idempotency_keys") is not None
        finally:
            await pool.aclose()
        empty = "SELECT count(*) FROM idempotency_keys"
        await asyncio.to_thread(
            wait_until, lambda: watch.execute(empty).fetchone() == (0,), "the job to take effect", SECONDS
        )
