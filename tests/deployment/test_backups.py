"""The commands of docs/how-to/back-up-and-restore.md, run as they stand there: base backup, point in time, dump."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command

from migrations.config import alembic_config
from services.catalog.models import Product
from services.database import Database, open_database
from services.local.embedded import EmbeddedPostgres
from services.local.embedded.postgres import find_postgres
from services.orders import service as orders
from services.orders.schemas import OrderCreate
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.outbox.testing import drain
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.conftest import settings_for
from tests.deployment.pages import blocks, run, settings_in
from tests.factories import make_product, make_user
from tests.processes import wait_until

PAGE = "back-up-and-restore.md"
SHOP = "shop"


@dataclass(frozen=True)
class Primary:
    """A server that archives its log as the page says."""

    server: EmbeddedPostgres
    backups: Path

    @property
    def url(self) -> str:
        return self.server.url(SHOP)

    @property
    def variables(self) -> dict[str, str]:
        return {"BACKUPS": str(self.backups), "BACKUP_URL": self.server.url(), "OWNER_URL": self.url}


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Primary]:
    folder = tmp_path_factory.mktemp("backups")
    if not (find_postgres().folder / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL has no pg_basebackup")
    backups = folder / "backups"
    (backups / "wal").mkdir(parents=True)
    (backups / "wal").chmod(0o777)
    (archiving,) = blocks(PAGE, "Archive the log", "ini")
    assert "/var/backups/waybill/wal/" in archiving
    settings = settings_in(archiving.replace("/var/backups/waybill", str(backups)))
    with EmbeddedPostgres(folder / "primary", settings=settings, durable=False) as server:
        server.create_database(SHOP)
        command.upgrade(alembic_config(server.url(SHOP)), "head")
        asyncio.run(fill(server.url(SHOP)))
        yield Primary(server, backups)


async def fill(url: str) -> None:
    """Orders: some are confirmed, others wait in the outbox."""
    async with open_database(settings_for(url, "redis://nowhere"), "test") as database:
        buyer, seller = await make_user(database, credits="500"), await make_user(database)
        product = await make_product(database, seller=seller, stock=1000)
        retry = RetryPolicy(8, 1, 1)
        processor = Processor(lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=retry, batch_size=50)
        await place(database, buyer, product)
        await drain(processor)
        await place(database, buyer, product)


async def place(database: Database, buyer: User, product: Product) -> None:
    wanted = OrderCreate.model_validate({"items": [{"product_id": product.id, "quantity": 2}]})
    patience = orders.Patience(timedelta(days=1), timedelta(days=1))
    async with UnitOfWork(database.write) as uow:
        for _ in range(5):
            await orders.place(uow, buyer, wanted, patience)
        await uow.commit()


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


COUNTS = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM entries), (SELECT count(*) FROM users)"
PRICES = "SELECT id, price FROM products ORDER BY id"


def archived(url: str) -> None:
    """Wait until the log up to now is in the archive."""
    (segment,) = rows(url, "SELECT pg_walfile_name(pg_switch_wal())")[0]
    last = "SELECT coalesce(last_archived_wal, ''), failed_count FROM pg_stat_archiver"
    wait_until(lambda: str(rows(url, last)[0][0]) >= segment, f"{segment} to be archived", 30)


def checked(url: str, folder: Path) -> None:
    (commands,) = blocks(PAGE, "Check the result", "sh")
    said = run(commands, folder, {"WAYBILL_DATABASE_URL": url})
    assert "everything agrees" in said
    assert "dead letters" in said


def test_a_base_backup_and_the_archive_bring_back_the_moment_before_a_mistake(primary: Primary, tmp_path: Path) -> None:
    (back_up,) = blocks(PAGE, "Archive the log", "sh")
    assert "successfully verified" in run(back_up, tmp_path, primary.variables)
    # What follows is only in the archived log.
    asyncio.run(fill(primary.url))
    counts, prices = rows(primary.url, COUNTS), rows(primary.url, PRICES)
    ((before,),) = rows(primary.url, "SELECT clock_timestamp()::text")
    rows(primary.url, "UPDATE products SET price = 0.01 RETURNING id")
    archived(primary.url)

    restore, wait = blocks(PAGE, "Go back to a point in time", "sh")
    restore, replaced = re.subn(r"^BEFORE='.*'$", f"BEFORE='{before}'", restore, flags=re.MULTILINE)
    assert replaced == 1
    folder = tmp_path / "restored"
    folder.mkdir()
    run(restore, tmp_path, {**primary.variables, "NEW_DATA": str(folder / "cluster")})
    (folder / "password").write_text(primary.server.password)
    with EmbeddedPostgres(folder, durable=False) as restored:
        url = restored.url(SHOP)
        run(wait, tmp_path, {"WAYBILL_DATABASE_URL": url})
        assert (rows(url, COUNTS), rows(url, PRICES)) == (counts, prices)
        # It goes on where it was, without another step: the audit notices what does not fit.
        asyncio.run(fill(url))
        checked(url, tmp_path)


def test_a_dump_is_restored_into_another_cluster(primary: Primary, tmp_path: Path) -> None:
    dump, load, adapt = blocks(PAGE, "Dump and restore", "sh")
    with EmbeddedPostgres(tmp_path / "new", durable=False) as new:
        new.create_database(SHOP)
        url = new.url(SHOP)
        run(dump, tmp_path, primary.variables)
        run(load, tmp_path, {**primary.variables, "NEW_DATABASE_URL": url})
        assert "is adapted to this cluster" in run(adapt, tmp_path, {"WAYBILL_DATABASE_URL": url})
        assert rows(url, COUNTS) == rows(primary.url, COUNTS)
        asyncio.run(fill(url))
        checked(url, tmp_path)
