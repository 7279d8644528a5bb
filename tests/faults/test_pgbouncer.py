"""Through a real PgBouncer in transaction mode: limits, settings and proofs hold, and nothing is left for others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.catalog.models import Category
from services.connections import Connection
from services.credits.ledger import service as ledger
from services.database import Database, Limits, _server_settings, commit, open_database
from services.operations import service as operations
from services.outbox.engine.repository import claim_settings
from services.settings import Settings
from services.sql import Statement, sqlstate
from services.unit_of_work import UnitOfWork
from tests.conftest import settings_for
from tests.factories import make_product, make_user
from tests.faults.edge import changed
from tests.faults.test_start import run
from tests.pgbouncer import running_pgbouncer
from tests.processes import running_api, running_worker, wait_until
from tests.roles import superuser_of
from worker.context import open_polling

OURS = _server_settings(settings_for("postgresql://nowhere/none", "redis://nowhere"), "test", Limits.of_jobs())
IGNORING = ",".join(sorted({*OURS, *claim_settings(9.0)} - {"application_name"}))
"""Settings that an administrator has PgBouncer ignore, so that clients which ask for them can connect."""


@pytest.fixture
def pooled(settings: Settings) -> Iterator[Settings]:
    """The settings of a process that reaches this test's database through PgBouncer, with two server connections."""
    with running_pgbouncer(settings.database_url, default_pool_size="2") as url:
        yield changed(settings, database_url=url)


@pytest.fixture
async def through(pooled: Settings) -> AsyncIterator[Database]:
    async with open_database(pooled, "api", Limits(statement=0.5, lock=0.3, transaction=2.0)) as database:
        yield database


SHOWN = ("search_path", "transaction_isolation", "jit", "random_page_cost", "statement_timeout", "lock_timeout")
OF_CLAIMS = ("enable_seqscan", "enable_sort", "plan_cache_mode", "statement_timeout", "lock_timeout")


async def shown(database: Database, names: tuple[str, ...] = SHOWN) -> list[str]:
    """These settings, as a transaction has them."""
    async with database.write() as session:
        connection = await session.connection()
        return [(await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names]


def server_settings(url: str) -> list[str]:
    """The same, as a plain client of PgBouncer gets them."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        found = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in (*SHOWN, *OF_CLAIMS)]
    return [str(row[0]) for row in found if row is not None]


@pytest.mark.parametrize("ignored", ["extra_float_digits", IGNORING], ids=["refusing settings", "ignoring settings"])
async def test_each_transaction_has_its_settings_and_leaves_none_behind(settings: Settings, ignored: str) -> None:
    with running_pgbouncer(
        settings.database_url, default_pool_size="1", ignore_startup_parameters=ignored, server_reset_query=""
    ) as url:
        before = await asyncio.to_thread(server_settings, url)
        given = changed(settings, database_url=url)
        async with (
            open_database(given, "api", Limits(statement=7.0, lock=3.0)) as requests,
            open_polling(given, 9.0) as polling,
        ):
            claims = Database(requests.engine, polling)
            # One after the other, on the same server connection.
            for _ in range(3):
                assert await shown(requests) == ["public", "read committed", "off", "1.1", "7s", "3s"]
                assert await shown(claims, OF_CLAIMS) == ["off", "off", "force_generic_plan", "9s", "1s"]
                assert await asyncio.to_thread(server_settings, url) == before
        assert claim_settings(9.0).keys() >= set(OF_CLAIMS)


async def test_each_engine_finds_out_whether_a_pooler_is_in_between(database: Database, through: Database) -> None:
    assert [await is_pooled(one.engine) for one in (database, through)] == [False, True]


async def is_pooled(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, Connection)
        return driver.is_pooled


@pytest.mark.parametrize(
    ("statement", "state"),
    [("SELECT pg_sleep(30)", "57014"), ("LOCK TABLE categories", "55P03")],
    ids=["a slow statement", "a lock"],
)
async def test_time_limits_hold(database: Database, through: Database, statement: str, state: str) -> None:
    async with database.engine.connect() as holder:
        await holder.execute(text("LOCK TABLE categories"))
        began = monotonic()
        with pytest.raises(DBAPIError) as raised:
            async with through.engine.begin() as connection:
                await connection.execute(text(statement))
        assert sqlstate(raised.value) == state
        assert monotonic() - began < 10


async def test_a_transaction_that_lasts_too_long_is_ended(through: Database) -> None:
    async def sleep_on() -> None:
        async with through.engine.begin() as connection:
            for _ in range(40):
                await connection.execute(text("SELECT pg_sleep(0.1)"))

    with pytest.raises(DBAPIError):
        await sleep_on()
    assert await shown(through), "the pool replaces the connection"


async def test_a_cancelled_statement_stops_at_the_server(database: Database, pooled: Settings) -> None:
    async with open_database(pooled, "cancelling") as through:

        async def sleep() -> None:
            async with through.engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(60)"))

        sleeping = asyncio.create_task(sleep())
        await sleepers(database, 1)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        await sleepers(database, 0)
        assert len(await shown(through)) == len(SHOWN)


async def test_a_batch_continues_after_a_cancelled_statement(pooled: Settings) -> None:
    asleep = Statement("SELECT pg_sleep(60)")
    async with open_polling(pooled, 20.0) as polling:
        for number in range(5):
            async with UnitOfWork(polling) as uow:
                uow.session.add(Category(name=f"kept {number}"))
                await uow.session.flush()
                with pytest.raises(TimeoutError):
                    await slowly(uow, asleep)
                await uow.commit()
        async with UnitOfWork(polling) as uow:
            assert await uow.categories.count() == 5


async def slowly(uow: UnitOfWork, statement: Statement) -> None:
    """Run it in a savepoint, for half a second at most."""
    async with asyncio.timeout(0.5), uow.savepoint():
        await uow.ledger.sql.fetch(statement)


async def sleepers(database: Database, number: int) -> None:
    """Wait until this many sessions of the database sleep."""
    counting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        " AND query = 'SELECT pg_sleep(60)'"
    )
    for _ in range(200):
        async with database.engine.connect() as connection:
            if (await connection.execute(counting)).scalar_one() == number:
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {number} sleeping sessions")


async def test_a_commit_is_proven_or_raises(database: Database, through: Database) -> None:
    async with UnitOfWork(through.write) as uow:
        uow.session.add(Category(name="kept"))
        await uow.commit()
    async with through.write() as session:
        connection = await session.connection()
        await connection.execute(text("INSERT INTO categories (name) VALUES ('lost')"))
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        async with database.engine.begin() as killer:
            await killer.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            await commit(session)
    async with through.engine.connect() as connection:
        names = (await connection.execute(text("SELECT name FROM categories"))).scalars().all()
    assert names == ["kept"]


COUNTED = [Statement(f"SELECT CAST(:given AS integer) + {number} AS found") for number in range(20)]


async def test_many_clients_run_the_same_statements_over_two_server_connections(pooled: Settings) -> None:
    async def work(through: Database, client: int) -> int:
        total = 0
        for number, statement in enumerate(COUNTED):
            async with UnitOfWork(through.write) as uow:
                for _ in range(2):
                    (row,) = await uow.ledger.sql.fetch(statement, given=client)
                    total += row["found"] - client - number
                assert await uow.categories.by_name("x") is None
        return total

    async with open_database(pooled, "api") as through:
        assert await asyncio.gather(*(work(through, client) for client in range(12))) == [0] * 12


async def test_the_api_and_a_worker_do_their_work(
    database: Database, settings: Settings, pooled: Settings, tmp_path: Path
) -> None:
    buyer, friend = await make_user(database, credits="100.00"), await make_user(database)
    product = await make_product(database, price="1.00", stock=1000)
    headers = {"Authorization": f"Bearer {Tokens.from_settings(pooled).make(session_of(buyer.id))}"}
    order = {"items": [{"product_id": product.id, "quantity": 1}]}
    with ExitStack() as stack:
        worker = stack.enter_context(running_worker(pooled, tmp_path / "worker.log"))
        api, url = stack.enter_context(running_api(pooled, tmp_path / "api.log"))
        client = stack.enter_context(httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False))

        def is_ready() -> bool:
            try:
                return bool(client.get("/readyz").json()["canary"] == "ok")
            except httpx2.TransportError:
                return False

        def post(path: str, key: str, body: dict[str, Any]) -> None:
            reply = client.post(path, json=body, headers={"Idempotency-Key": key})
            assert reply.status_code == 201, reply.text

        wait_until(is_ready, "the API to become ready")
        for number in range(20):
            post("/v1/orders", f"order-{number}", order)
            post("/v1/transfers", f"transfer-{number}", {"to_user_id": friend.id, "amount": "1.00"})
        assert client.get("/v1/products", params={"q": product.name}).status_code == 200
        with psycopg.connect(superuser_of(settings), autocommit=True) as watch:
            confirmed = "SELECT count(*) FROM orders WHERE status = 'confirmed'"
            wait_until(lambda: watch.execute(confirmed).fetchone() == (20,), "confirmed orders")
            ran = "SELECT count(*) FROM jobs WHERE ok AND name = 'ensure_event_partitions'"
            wait_until(lambda: watch.execute(ran).fetchone() == (1,), "a job")
        for process in (worker, api):
            assert "the database is behind a pooler" in process.said()
            assert "Traceback" not in process.said()
        for arguments in (["ledger", "audit"], ["workers", "check"]):
            code, said = run(["-m", "services.cli", *arguments], pooled)
            assert code == 0, said
        assert worker.terminate(15) == 0
    async with UnitOfWork(database.read) as uow:
        assert (await operations.books(uow)).balanced
        assert (await ledger.account_of(uow, friend.id)).posted == 20


@pytest.mark.parametrize("arguments", [["-m", "services.cli", "migrate"], ["-m", "alembic", "upgrade", "head"]])
def test_migrations_ask_for_the_address_of_the_server(pooled: Settings, arguments: list[str]) -> None:
    code, said = run(arguments, pooled)
    assert code != 0
    assert "Traceback" not in said
    assert "behind a pooler: set WAYBILL_MIGRATION_DATABASE_URL to the address of PostgreSQL itself" in said
