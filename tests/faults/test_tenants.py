"""Two tenants share one database and one Redis; neither touches what belongs to the other."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from arq import create_pool
from arq.connections import RedisSettings
from psycopg import sql
from redis.asyncio import Redis

from migrations.config import alembic_config
from services.database import Database, open_database
from services.idempotency.repository import Free, InFlight, RequestKey
from services.keys import Keys
from services.orders.schemas import OrderCreate
from services.orders.service import Patience, place
from services.outbox.doorbell import Doorbell
from services.query import PageQuery
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.conftest import Administrator, settings_for, temporary_database
from tests.factories import make_product, make_user
from tests.migrations.test_environment import alembic_process
from tests.processes import running_worker, wait_until
from tests.servers import TestServers

TENANTS = ("tenant_one", "tenant_two")
LONG = 60.0
"""A poll interval that no test waits for, in seconds: only the doorbell can wake a worker in time."""


@dataclass
class Tenant:
    settings: Settings
    database: Database
    doorbell: Doorbell
    rows: "psycopg.Connection[tuple[Any, ...]]"
    """A connection that sees only this tenant's tables."""

    @property
    def name(self) -> str:
        return self.settings.database_schema

    def one(self, statement: str) -> Any:
        row = self.rows.execute(statement.encode()).fetchone()
        return row and row[0]

    def wait_until(self, statement: str, what: str, seconds: float = 60.0) -> None:
        """Wait until the statement returns true."""
        wait_until(lambda: bool(self.one(statement)), f"{what} of {self.name}", seconds)


@pytest.fixture(scope="module")
def shared_database(administrator: Administrator, servers: TestServers) -> Iterator[str]:
    """A database with two tenants, and nothing in `public`."""
    with temporary_database(administrator, servers, "template0") as url:
        for name in TENANTS:
            command.upgrade(alembic_config(url, name), "head")
        yield url


@pytest.fixture
async def tenants(shared_database: str, redis_url: str) -> AsyncIterator[list[Tenant]]:
    async with AsyncExitStack() as stack:
        found = []
        for name in TENANTS:
            settings = settings_for(shared_database, redis_url).model_copy(
                update={"database_schema": name, "outbox_poll_interval": LONG}
            )
            redis = await stack.enter_async_context(Redis.from_url(redis_url))
            doorbell = await stack.enter_async_context(Doorbell(redis, Keys.of(settings).doorbell))
            database = await stack.enter_async_context(open_database(settings, name))
            rows = stack.enter_context(psycopg.connect(shared_database, autocommit=True))
            rows.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(name)))
            found.append(Tenant(settings, database, doorbell, rows))
        yield found


@contextmanager
def workers(tenants: list[Tenant], folder: Path) -> Iterator[None]:
    """A worker for each tenant."""
    with ExitStack() as stack:
        for tenant in tenants:
            stack.enter_context(running_worker(tenant.settings, folder / f"{tenant.name}.log"))
            tenant.wait_until("SELECT count(*) = 1 FROM workers", "the worker")
        yield


async def place_orders(tenant: Tenant, number: int) -> None:
    """Orders, each in a transaction of its own whose commit rings."""
    product = await make_product(tenant.database)
    buyer: User = await make_user(tenant.database, credits="1000")
    for _ in range(number):
        async with UnitOfWork(tenant.database.write, tenant.doorbell) as uow:
            wanted = OrderCreate.model_validate({"items": [{"product_id": product.id, "quantity": 1}]})
            await place(uow, buyer, wanted, Patience.from_settings(tenant.settings))
            await uow.commit()


CONFIRMED = "SELECT count(*) FROM orders WHERE status = 'confirmed'"


async def test_each_order_is_processed_by_its_own_tenants_worker(tenants: list[Tenant], tmp_path: Path) -> None:
    with workers(tenants, tmp_path):
        # Redis wakes the listeners in turn, so each tenant's orders come one after the other.
        for tenant in (tenant for tenant in tenants for _ in range(3)):
            before = tenant.one(CONFIRMED)
            await place_orders(tenant, 1)
            # A ring that wakes the other tenant's worker is lost; this one would then look only after a minute.
            confirmed = f"SELECT count(*) = {before + 1} FROM orders WHERE status = 'confirmed'"
            await asyncio.to_thread(tenant.wait_until, confirmed, "the order", LONG / 2)
    for tenant in tenants:
        assert tenant.one("SELECT count(*) FROM outbox") == 0


async def test_each_tenants_jobs_run_on_schedule_and_on_request(tenants: list[Tenant], tmp_path: Path) -> None:
    every = "SELECT count(*) FROM jobs"
    ran = "SELECT runs FROM jobs WHERE name = '{}'"
    with workers(tenants, tmp_path):
        for tenant in tenants:
            tenant.wait_until(ran.format("ensure_event_partitions"), "the job of the start")
            tenant.rows.execute("UPDATE jobs SET due_at = now() WHERE name = 'report_backlog'")
            tenant.wait_until(ran.format("report_backlog"), "the job that is due")
        assert tenants[0].one(every) == tenants[1].one(every)

        asked, other = tenants
        before = other.one(ran.format("prune_idempotency_keys"))
        pool = await create_pool(
            RedisSettings.from_dsn(asked.settings.redis_url),
            job_serializer=lambda job: json.dumps(job).encode(),
            default_queue_name=Keys.of(asked.settings).jobs,
        )
        try:
            assert await pool.enqueue_job("prune_idempotency_keys") is not None
        finally:
            await pool.aclose()
        await asyncio.to_thread(asked.wait_until, ran.format("prune_idempotency_keys"), "the requested job")
        assert other.one(ran.format("prune_idempotency_keys")) == before


async def test_every_key_in_redis_names_its_installation_and_tenant(tenants: list[Tenant]) -> None:
    settings = tenants[0].settings.model_copy(update={"redis_prefix": "shop-7"})
    async with Redis.from_url(settings.redis_url) as redis:
        async with Doorbell(redis, Keys.of(settings).doorbell) as bell:
            bell.ring()
            # The task that rings has to run once.
            await asyncio.sleep(0.1)
        assert await redis.keys() == [b"shop-7:tenant_one:doorbell"]


async def test_the_same_request_of_two_tenants_is_not_the_same_lock(tenants: list[Tenant]) -> None:
    key = RequestKey(1, "POST", "/v1/orders", "k", b"0" * 32)
    one, two = tenants
    async with (
        UnitOfWork(one.database.write) as first,
        UnitOfWork(one.database.write) as again,
        UnitOfWork(two.database.write) as second,
    ):
        assert isinstance(await first.idempotency.take(key), Free)
        assert isinstance(await again.idempotency.take(key), InFlight)
        assert isinstance(await second.idempotency.take(key), Free)


async def test_a_tenant_sees_no_table_of_public_and_searches_products(tenants: list[Tenant]) -> None:
    tenant = tenants[0]
    tenant.rows.execute("CREATE TABLE IF NOT EXISTS public.only_here ()")
    lantern = await make_product(tenant.database, name="Brass lantern")
    async with UnitOfWork(tenant.database.write) as uow:
        seen = await (await uow.session.connection()).exec_driver_sql("SELECT to_regclass('only_here')")
        assert seen.scalar_one() is None
        found = await uow.products.page(PageQuery(limit=10), "lanten")
        assert [product.id for product in found.data] == [lantern.id]


async def test_a_tenant_finds_an_extension_that_older_releases_installed_in_public(
    empty_database_url: str, redis_url: str
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_trgm WITH SCHEMA public")
    for name in ("public", "tenant_one"):
        await asyncio.to_thread(command.upgrade, alembic_config(empty_database_url, name), "head")
        settings = settings_for(empty_database_url, redis_url).model_copy(update={"database_schema": name})
        async with open_database(settings, "test") as database:
            lantern = await make_product(database, name="Brass lantern")
            async with UnitOfWork(database.write) as uow:
                found = await uow.products.page(PageQuery(limit=10), "lanten")
            assert [product.id for product in found.data] == [lantern.id]


def test_tenants_that_are_created_at_the_same_time_share_the_extension(empty_database_url: str) -> None:
    with ExitStack() as stack:
        made = [
            stack.enter_context(alembic_process(empty_database_url, "-x", f"schema=tenant_{number}", "upgrade", "0001"))
            for number in range(3)
        ]
        for process in made:
            assert process.wait(60) == 0
    with psycopg.connect(empty_database_url) as connection:
        where = "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace"
        assert connection.execute(where + " WHERE extname = 'pg_trgm'").fetchall() == [("waybill_extensions",)]
