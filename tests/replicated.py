"""A primary with a streaming replica for tests of the API, and databases on both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
import psycopg
import pytest
from alembic import command
from psycopg import sql
from sqlalchemy import make_url

from migrations.config import alembic_config
from services.api.reads import LAG_HEADER, Outcome
from services.app import create_app
from services.cli.database_roles import prepare
from services.database import Database
from services.local.embedded import EmbeddedPostgres
from services.replica import Replica, ReplicaState
from services.settings import Settings
from tests.api.client import Api
from tests.conftest import settings_for
from tests.processes import wait_until
from tests.roles import APPLICATION, OWNER, READER, as_role, roles_of
from tests.standby import Standby, primary_server, standby_of

_TEMPLATE = "migrated"


@dataclass(frozen=True, slots=True)
class Pair:
    """A primary with a migrated template database, and its replica."""

    primary: EmbeddedPostgres
    standby: Standby

    @contextmanager
    def settings(self, redis_url: str) -> Iterator[Settings]:
        """Settings for a new database, which the replica has, too. Afterwards the replica runs and replays again."""
        name = f"test_{uuid4().hex}"
        with psycopg.connect(self.primary.url(), autocommit=True) as administrator:
            made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(_TEMPLATE))
            administrator.execute(made)
            self.catch_up()
            # With the role that sees no secrets: what needs more would be read on the primary.
            replicated = {"database_replica_url": as_role(READER, self.standby.url(name))}
            yield settings_for(self.primary.url(name), redis_url).model_copy(update=replicated)
            self.standby.start()
            self.standby.resume()
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def catch_up(self) -> None:
        """Wait until the replica has replayed everything that is committed now."""
        with psycopg.connect(self.primary.url()) as primary, psycopg.connect(self.standby.url()) as standby:
            found = primary.execute("SELECT CAST(pg_current_wal_flush_lsn() AS text)").fetchone()
            standby.autocommit = True
            reached = "SELECT pg_last_wal_replay_lsn() >= CAST(%s AS pg_lsn)"
            wait_until(lambda: standby.execute(reached, found).fetchone() == (True,), "the replica")


@contextmanager
def replicated_servers(folder: Path) -> Iterator[Pair]:
    with primary_server(folder / "primary") as primary:
        primary.create_database(_TEMPLATE)
        url = primary.url(_TEMPLATE)
        prepare(make_url(url), roles_of(url), "public")
        command.upgrade(alembic_config(as_role(OWNER, url), application=APPLICATION, reader=READER), "head")
        with standby_of(primary, folder / "standby") as standby:
            yield Pair(primary, standby)


@asynccontextmanager
async def running_api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    """The application with these settings, and a client for it."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        yield Api(app, client, settings, database)


def replica_of(api: Api) -> Replica:
    replica: Replica | None = api.app.state.waybill.database.replica
    assert replica is not None
    return replica


def outcomes(api: Api) -> dict[Outcome, int]:
    """How many reads went where so far."""
    return dict(api.app.state.waybill.reads.outcomes)


def read_from_replica(reply: httpx2.Response) -> bool:
    """Whether this successful reply was read there."""
    assert reply.status_code == 200, reply.text
    return LAG_HEADER in reply.headers


async def until(met: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str) -> None:
    """Wait until the condition is met; a minute allows for busy machines."""
    async with asyncio.timeout(60):
        while True:
            found = met()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)
    raise AssertionError(what)


async def until_state(api: Api, state: ReplicaState) -> None:
    await until(lambda: replica_of(api).state == state, state)


async def ready_says(api: Api) -> tuple[int, bool, str]:
    """The status of `/readyz`, whether the process is ready, and what it says about the replica."""
    reply = await api.get("/readyz")
    said = reply.json()
    return reply.status_code, said["ready"], said["replica"]


async def is_fit(replica: Replica | None) -> bool:
    """Whether it is fit after a look at it."""
    assert replica is not None
    await replica.look()
    return replica.is_fit


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """The messages that contain this."""
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]
