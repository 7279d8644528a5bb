"""A database that came from another cluster: it is recognised, refused, and adapted by one command."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text
from typer.testing import CliRunner

from migrations.config import alembic_config
from services.app import create_app
from services.cli.main import app as waybill
from services.database import Database, open_database
from services.local.embedded import EmbeddedPostgres
from services.local.embedded.postgres import find_postgres
from services.outbox.log import service as log
from services.outbox.log.service import Start
from services.outbox.origin import service as origin
from services.outbox.origin.service import RebaseNeeded
from services.outbox.retention.repository import add_partitions
from services.settings import Settings, get_settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.log_readers import Noted, make_consumer, note, read_all, read_once
from tests.conftest import settings_for
from tests.roles import superuser_of
from worker.context import open_worker
from worker.jobs.retention import forget_events

DATABASE = "shop"

BURN = "DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
"""Uses up transaction ids."""

AT_WORK = {"wal_level": "logical", "max_replication_slots": "4", "max_wal_senders": "4"}


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """An old and a new cluster, each made by its own `initdb`."""
    folder = tmp_path_factory.mktemp("clusters")
    if not (find_postgres().folder / "pg_dump").exists():
        pytest.skip("this PostgreSQL has no pg_dump")
    with (
        EmbeddedPostgres(folder / "old", settings=AT_WORK, durable=False) as old,
        EmbeddedPostgres(folder / "new", settings=AT_WORK, durable=False) as new,
    ):
        yield old, new


@pytest.fixture
def old(clusters: tuple[EmbeddedPostgres, EmbeddedPostgres]) -> Iterator[str]:
    """The address of a migrated database in a cluster that has used many transaction ids."""
    with database_in(clusters[0]) as url:
        command.upgrade(alembic_config(url), "head")
        run_longer(url, clusters[1].url())
        yield url


@pytest.fixture
def new(clusters: tuple[EmbeddedPostgres, EmbeddedPostgres]) -> Iterator[str]:
    """The address of an empty database in another cluster."""
    with database_in(clusters[1]) as url:
        yield url


class database_in:  # noqa: N801  (a context manager)
    """A new database in the cluster; yields its address."""

    def __init__(self, cluster: EmbeddedPostgres) -> None:
        self._cluster = cluster

    def __enter__(self) -> str:
        self._cluster.create_database(DATABASE)
        return self._cluster.url(DATABASE)

    def __exit__(self, *_: object) -> None:
        run(self._cluster.url(), f"DROP DATABASE {DATABASE} WITH (FORCE)")


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def run_longer(url: str, other: str) -> None:
    """Use up transaction ids in the first cluster until it is well ahead of the other one."""
    ahead = newest_id(other) + 2000
    while newest_id(url) < ahead:
        run(url, BURN)


def newest_id(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert found is not None
    return int(found[0])


def copy(old: str, new: str, *options: str) -> None:
    """`pg_dump | psql`."""
    folder: Path = find_postgres().folder
    dump = subprocess.run([folder / "pg_dump", *options, old], capture_output=True, check=True).stdout
    subprocess.run(
        [folder / "psql", "--quiet", "--set", "ON_ERROR_STOP=1", new], input=dump, capture_output=True, check=True
    )


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    async with open_database(settings_for(url, "redis://127.0.0.1:1/0"), "test") as database:
        yield database


async def rebase(database: Database) -> None:
    async with database.engine.begin() as connection:
        await origin.rebase(connection)


async def complaint(database: Database) -> str | None:
    async with database.engine.connect() as connection:
        return await origin.complaint(connection)


async def fill(database: Database) -> None:
    """Six events; consumers that have read all, some (in the middle of a read), none, and one that starts now."""
    for name in ("all", "some", "none", "middle"):
        await make_consumer(database, name)
    await note(database, *(Noted(name="a", number=number) for number in range(3)))
    await read_all(database, consumer="some")
    await note(database, *(Noted(name="b", number=number) for number in range(3)))
    await read_all(database, consumer="all")
    await read_once(database, 2, "middle")
    async with UnitOfWork(database.write) as uow:
        await log.create(uow, "new", Start.now)
        await uow.commit()


@pytest.mark.parametrize("service_wrote_first", [False, True])
async def test_after_a_restore_consumers_continue_where_they_were(
    old: str, new: str, service_wrote_first: bool
) -> None:
    async with opened(old) as database:
        await fill(database)
        assert await complaint(database) is None
    copy(old, new)
    async with opened(new) as database:
        written = []
        if service_wrote_first:
            # A service that was not stopped, and follows the address of the database to the new cluster.
            await note(database, Noted(name="early"))
            written.append("early 0")
        with pytest.raises(RebaseNeeded, match="waybill outbox rebase"):
            await read_all(database, consumer="all")
        for start in Start:
            with pytest.raises(RebaseNeeded):
                async with UnitOfWork(database.write) as uow:
                    await log.reset(uow, "all", start)
        async with UnitOfWork(database.write) as uow:
            # A worker that finds nothing new still learns of it, at the latest when it renews its lease.
            lease = await uow.log.claim("all", uuid4(), 60.0)
            assert lease is not None
            with pytest.raises(RebaseNeeded):
                await log.renew(uow, "all", lease)
        assert "restored from a dump" in str(await complaint(database))
        await rebase(database)
        assert await complaint(database) is None
        await note(database, Noted(name="late"))
        written.append("late 0")
        first = [f"{name} {number}" for name in "ab" for number in range(3)]
        assert await read_all(database, consumer="all") == written
        assert await read_all(database, consumer="some") == [*first[3:], *written]
        assert await read_all(database, consumer="middle") == [*first[2:], *written]
        assert await read_all(database, consumer="none") == [*first, *written]
        assert await read_all(database, consumer="new") == written
        # And again, in the usual way.
        await note(database, Noted(name="later"))
        for name in ("all", "none", "new"):
            assert await read_all(database, consumer=name) == ["later 0"]


async def test_after_a_restore_what_another_database_has_read_is_not_continued(old: str, new: str) -> None:
    series = text("SELECT series, dropped_position FROM log_sinks")
    async with opened(old) as database:
        await fill(database)
        async with UnitOfWork(database.write) as uow:
            await uow.log.add_sink("all")
            await uow.commit()
        async with database.engine.begin() as connection:
            dropped = "UPDATE log_sinks SET dropped_transaction_id = '900000000', dropped_position = 1"
            await connection.execute(text(dropped))
            before = (await connection.execute(series)).one()
    copy(old, new)
    async with opened(new) as database:
        await rebase(database)
        async with database.engine.connect() as connection:
            after = (await connection.execute(series)).one()
    assert after[0] != before[0]
    assert after[1] is None


async def test_retention_drops_nothing_after_a_restore_until_the_database_is_adapted(old: str, new: str) -> None:
    before = datetime(2022, 1, 1, tzinfo=UTC)
    async with opened(old) as database:
        async with database.engine.begin() as connection:
            await add_partitions(connection, [(2021, 3)])
            await connection.execute(
                text(
                    "INSERT INTO events (id, type, version, aggregate, payload)"
                    " VALUES ('01787000-0000-7000-8000-000000000000', 'a.b', 1, 'a/1', '{}')"
                )
            )
        await make_consumer(database)
    copy(old, new)
    async with opened(new) as database:
        with pytest.raises(RebaseNeeded):
            await forget_events(database.engine, before, None)
        await rebase(database)
        assert await forget_events(database.engine, before, None) == []
        async with database.engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM events")) == 1


async def test_a_cluster_that_has_used_more_ids_is_recognised_by_its_identifier(old: str, new: str) -> None:
    async with opened(old) as database:
        await fill(database)
    run_longer(new, old)
    copy(old, new)
    async with opened(new) as database:
        # As after pg_upgrade: services may run, and what they write is read once the operator has looked.
        assert await complaint(database) is None
        with pytest.raises(RebaseNeeded, match="upgraded"):
            await read_all(database, consumer="all")
        await note(database, Noted(name="late"))
        await rebase(database)
        assert await read_all(database, consumer="all") == ["late 0"]
        assert await read_all(database, consumer="some") == ["b 0", "b 1", "b 2", "late 0"]


async def test_a_role_that_may_not_read_the_identifier_still_notices_ids_from_another_cluster(
    old: str, new: str
) -> None:
    async with opened(old) as database:
        await fill(database)
    copy(old, new)
    run(
        new,
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public",
        "CREATE ROLE clerk LOGIN PASSWORD 'clerk'",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk",
    )
    try:
        async with opened(new.replace(new.split("//")[1].split("@")[0], "clerk:clerk")) as database:
            with pytest.raises(RebaseNeeded):
                await read_all(database, consumer="all")
    finally:
        run(
            new,
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO public",
            "DROP OWNED BY clerk",
            "DROP ROLE clerk",
        )


async def test_a_dump_of_an_earlier_release_is_noticed_after_the_migration(old: str, new: str) -> None:
    async with opened(old) as database:
        await fill(database)
    await asyncio.to_thread(command.downgrade, alembic_config(old), "0011")
    copy(old, new)
    await asyncio.to_thread(command.upgrade, alembic_config(new), "head")
    run(new, BURN)
    async with opened(new) as database:
        with pytest.raises(RebaseNeeded):
            await read_all(database, consumer="all")


async def test_logical_replication_leaves_sequences_behind_and_the_command_corrects_them(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with opened(old) as database:
        await fill(database)
    run(old, "CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true)")
    copy(old, new, "--schema-only", "--no-publications")
    run(new, f"CREATE SUBSCRIPTION upgrade CONNECTION '{old}' PUBLICATION everything")
    try:
        async with opened(new) as database, asyncio.timeout(30):
            count = text("SELECT count(*) FROM events, alembic_version, log_consumers")
            while True:
                async with database.engine.connect() as connection:
                    if await connection.scalar(count) == 30:
                        break
                await asyncio.sleep(0.1)
    finally:
        run(new, "DROP SUBSCRIPTION upgrade")
        run(old, "DROP PUBLICATION everything")
    # This cluster has used more ids: only the sequences are wrong.
    run_longer(new, old)
    settings = settings_for(new, "redis://127.0.0.1:1/0")
    with pytest.raises(RebaseNeeded, match=r"events_position_seq .*waybill outbox rebase"):
        async with open_worker(settings):
            pass
    with pytest.raises(RebaseNeeded, match="events_position_seq"):
        async with create_app(settings).router.lifespan_context(create_app(settings)):
            pass
    use(settings, monkeypatch, tmp_path)
    for arguments in (["outbox", "consumers", "list"], ["workers", "check"]):
        said = await asyncio.to_thread(CliRunner().invoke, waybill, arguments)
        assert "waybill outbox rebase" in said.output
    said = await asyncio.to_thread(CliRunner().invoke, waybill, ["outbox", "rebase", "--yes"])
    assert said.exit_code == 0, said.output
    assert "events_position_seq" in said.output
    async with open_worker(settings) as worker:
        await note(worker.database, Noted(name="late"))
        assert await read_all(worker.database, consumer="all") == ["late 0"]
        async with worker.database.engine.connect() as connection:
            positions = "SELECT count(*) - count(DISTINCT position) FROM events"
            assert await connection.scalar(text(positions)) == 0
            assert await connection.scalar(text("SELECT action FROM outbox_actions")) == "rebase"
            acts = "SELECT actor FROM audit_log WHERE action = 'outbox.rebased'"
            assert await connection.scalar(text(acts)) == "command:outbox rebase"


def use(settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have commands use these settings."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", settings.environment.value)
    monkeypatch.setenv("WAYBILL_DATABASE_URL", settings.database_url)
    get_settings.cache_clear()
    monkeypatch.setattr("services.cli.run.get_settings", lambda: settings)


async def test_an_api_whose_database_is_replaced_by_a_copy_is_not_ready(settings: Settings) -> None:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/readyz")).json()["database"] == "ok"
        run(
            superuser_of(settings),
            "INSERT INTO events (id, type, version, aggregate, payload, transaction_id)"
            " VALUES (gen_random_uuid(), 'a.b', 1, 'a/1', '{}', '9000000000')",
        )
        probe = app.state.waybill.probe
        probe._copied._kept = probe._database._kept = 0.0
        answer = await client.get("/readyz")
        for _ in range(20):
            if answer.status_code == 503:
                break
            await asyncio.sleep(0.1)
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["database"]) == (503, "copied")
