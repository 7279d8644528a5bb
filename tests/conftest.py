"""Servers, databases and settings for tests.

Every test that asks for `database_url` gets a database of its own, cloned from one that went through the migrations
once in the session. So tests commit for real, and other connections and processes see what they wrote.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from psycopg import sql
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import make_url

from migrations.config import ANALYTICS, alembic_config
from services.analytics import Analytics, open_analytics
from services.api.rate_classes import LIMITED
from services.app import create_app
from services.cli.database_roles import prepare
from services.database import Database, Limits, open_database
from services.settings import Environment, LogFormat, Settings, get_settings
from services.unit_of_work import OpenUnitOfWork, UnitOfWork
from tests.documented import COMPARISON, compared_replies
from tests.roles import APPLICATION, OWNER, READER, as_role, roles_of, superuser_of
from tests.servers import TestServers, test_servers

Administrator: TypeAlias = psycopg.Connection[tuple[object, ...]]

REDIS_DATABASES = 16
"""The number of databases that a Redis server has by default."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ledger-steps",
        type=int,
        default=2000,
        help="random steps that the ledger is compared with its model over (2000); more find more",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_developer() -> Iterator[None]:
    """Tests set what they need; variables exported in the shell must not affect them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("WAYBILL_") and not name.startswith("WAYBILL_TEST_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _compared_with_the_document() -> Iterator[None]:
    with compared_replies():
        yield


@pytest.fixture(autouse=True)
def _as_documented() -> Iterator[None]:
    """A test fails if a reply to it was not as the OpenAPI document says."""
    yield
    assert not (found := sorted(set(COMPARISON.take()))), "not as documented:\n" + "\n".join(found)


@pytest.fixture(scope="session")
def servers() -> Iterator[TestServers]:
    """PostgreSQL and Redis of this session (with xdist: of this worker)."""
    with test_servers() as running:
        yield running


@pytest.fixture(scope="session")
def administrator(servers: TestServers) -> Iterator[Administrator]:
    """A superuser's connection to the database `postgres`, in autocommit mode."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        yield connection


@contextmanager
def temporary_database(administrator: Administrator, servers: TestServers, template: str) -> Iterator[str]:
    """A copy of the database `template`; yields its address. Dropped afterwards, together with open connections."""
    name = f"waybill_test_{uuid4().hex}"
    owned = "SELECT CAST(pg_get_userbyid(datdba) AS text) FROM pg_database WHERE datname = %s"
    owner = administrator.execute(owned, [template]).fetchone()
    assert owner is not None
    administrator.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
            sql.Identifier(name), sql.Identifier(template), sql.Identifier(str(owner[0]))
        )
    )
    # A copy takes over neither the owner nor what was revoked from the database itself.
    administrator.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    try:
        yield make_url(servers.postgres_url).set(database=name).render_as_string(hide_password=False)
    finally:
        administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def template_database(administrator: Administrator, servers: TestServers) -> Iterator[str]:
    """The name of an otherwise empty database that was migrated to the newest revision. Do not connect to it."""
    with temporary_database(administrator, servers, "template0") as url:
        prepare(make_url(url), roles_of(url), "public")
        command.upgrade(alembic_config(as_role(OWNER, url), application=APPLICATION, reader=READER), "head")
        with psycopg.connect(url) as connection:
            # Tables that a test makes for its own handlers belong to the superuser.
            for kind in (sql.SQL("TABLES"), sql.SQL("SEQUENCES")):
                connection.execute(
                    sql.SQL("ALTER DEFAULT PRIVILEGES GRANT ALL ON {} TO {}").format(kind, sql.Identifier(APPLICATION))
                )
        name = make_url(url).database
        assert name is not None
        yield name


@pytest.fixture
def database_url(administrator: Administrator, servers: TestServers, template_database: str) -> Iterator[str]:
    """The address (postgresql://...) of a migrated database that belongs to this test, with the role of a superuser.

    The application runs as `APPLICATION`, which may do less: see `settings`.
    """
    with temporary_database(administrator, servers, template_database) as url:
        yield url


@pytest.fixture(scope="session")
def analytics_template(administrator: Administrator, servers: TestServers) -> Iterator[str]:
    """The name of an otherwise empty analytics database that was migrated to the newest revision."""
    with temporary_database(administrator, servers, "template0") as url:
        prepare(make_url(url), roles_of(url), "public")
        config = alembic_config(as_role(OWNER, url), section=ANALYTICS, application=APPLICATION)
        command.upgrade(config, "head")
        name = make_url(url).database
        assert name is not None
        yield name


@pytest.fixture
def analytics_url(administrator: Administrator, servers: TestServers, analytics_template: str) -> Iterator[str]:
    """The address of a migrated analytics database that belongs to this test, with the application's role."""
    with temporary_database(administrator, servers, analytics_template) as url:
        yield as_role(APPLICATION, url)


@pytest.fixture
async def analytics(settings: Settings) -> AsyncIterator[Analytics]:
    """The analytics database of the test's settings, which must turn reports on."""
    async with open_analytics(settings, "test", Limits.of_sinks(), 2) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
def empty_database_url(administrator: Administrator, servers: TestServers) -> Iterator[str]:
    """The address of a database without tables that belongs to this test."""
    with temporary_database(administrator, servers, "template0") as url:
        yield url


@pytest.fixture
def redis_url(servers: TestServers) -> str:
    """The address of an emptied Redis database; no other xdist worker uses it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    url = make_url(servers.redis_url).set(database=str(worker % REDIS_DATABASES)).render_as_string(hide_password=False)
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


BOTH_PATHS = pytest.mark.parametrize("group_commit", [True, False], ids=["in groups", "alone"])
"""Runs tests twice: with orders and transfers carried out in groups, and each alone."""


@pytest.fixture
def group_commit() -> bool:
    """Whether orders and transfers are carried out in groups."""
    is_default: bool = Settings.model_fields["group_commit"].default
    return is_default


@pytest.fixture
def settings(database_url: str, redis_url: str, group_commit: bool) -> Settings:
    """Settings for this test's database and Redis. Change one with `settings.model_copy(update={...})`.

    What runs with them has the role of the application, without the rights of the tables' owner.
    """
    made = settings_for(as_role(APPLICATION, database_url), redis_url)
    return made.model_copy(update={"group_commit": group_commit, "admin_database_url": SecretStr(database_url)})


@pytest.fixture
def settings_of_superuser(settings: Settings) -> Settings:
    """The same, for a test that changes tables, or rows that the application cannot change."""
    return settings.model_copy(update={"database_url": superuser_of(settings)})


LOOSE = {f"rate_limit_{kind}": 1_000_000 for kind in LIMITED}
"""Requests are counted in every test, and refused only in those about limits."""


def settings_for(database_url: str, redis_url: str) -> Settings:
    """Settings for a test, independent of what the developer has set."""
    return Settings(
        _env_file=None,
        environment=Environment.development,
        log_format=LogFormat.console,
        database_url=database_url,
        redis_url=redis_url,
        # The cheapest possible hash: the passwords are not secret here.
        argon2_memory_kib=8,
        argon2_time_cost=1,
        argon2_parallelism=1,
    ).model_copy(update=LOOSE)


@pytest.fixture
def _settings_of_commands(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The environment that a command run in this process reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WAYBILL_ENVIRONMENT", settings.environment.value)
    monkeypatch.setenv("WAYBILL_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("WAYBILL_MIGRATION_DATABASE_URL", as_role(OWNER, settings.database_url))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
async def database(settings_of_superuser: Settings) -> AsyncIterator[Database]:
    """Engines and session factories on this test's database, with which a test may do anything."""
    async with open_database(settings_of_superuser, "test") as opened:
        yield opened


@pytest.fixture
async def looking(settings_of_superuser: Settings) -> AsyncIterator[Database]:
    """The same database over other connections: what they see is committed."""
    async with open_database(settings_of_superuser, "looking") as opened:
        yield opened


@pytest.fixture
def uow(database: Database) -> OpenUnitOfWork:
    """Opens units of work on this test's database: `async with uow() as unit: ...`. No doorbell rings."""
    return lambda: UnitOfWork(database.write)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application on this test's database, with its lifespan running."""
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """Sends requests to the application in this process. An error it does not handle is a 500, as over a socket."""
    async with AsyncClient(transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://test") as client:
        yield client
