"""The servers and processes that the storm hits, each behind its own proxy."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import httpx2
import psycopg
from alembic import command
from anyio.from_thread import BlockingPortal
from psycopg.rows import TupleRow
from sqlalchemy import make_url

from migrations.config import alembic_config
from services.local.embedded import EmbeddedPostgres, EmbeddedRedis
from services.local.embedded.ports import LOOPBACK, any_free_port
from services.settings import Settings
from tests.conftest import settings_for
from tests.faults.storm.findings import Findings
from tests.faults.storm.proxy import Proxy
from tests.processes import Running, environment_of, running
from tests.roles import superuser_of

APIS = 2
WORKERS = 2
POOL_SIZE, OVERFLOW = 5, 3
POOL = POOL_SIZE + OVERFLOW
"""Connections that an API process may have."""

_NO_DATABASE = (1, 3)
"""Exit codes of a worker and of an API that find no database when they start; their supervisor starts them again."""
_START_UP = 30.0
"""The most seconds that this takes, even on a busy machine."""


@dataclass
class Member:
    """One process, the proxy between it and PostgreSQL, and what the storm does to it."""

    name: str
    running: Running
    proxy: Proxy
    port: int = 0
    """Of an API."""
    down: bool = False
    """It was killed or told to stop, and must not be started again yet."""
    started: float = field(default_factory=time.monotonic)

    def start_again(self) -> None:
        self.running.start_again()
        self.down = False
        self.started = time.monotonic()


@dataclass
class Site:
    """Everything that runs. Used from the main thread: the end of a thread ends the processes it started."""

    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    portal: BlockingPortal
    settings: Settings
    """Of a process that reaches both servers without a proxy."""
    findings: Findings
    redis_proxy: Proxy
    apis: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)
    database_away: float = 0.0
    """When PostgreSQL was last seen, or made, unable to answer a client."""

    @property
    def members(self) -> list[Member]:
        return [*self.apis, *self.workers]

    @property
    def proxies(self) -> list[Proxy]:
        return [self.redis_proxy, *(member.proxy for member in self.members)]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Await a coroutine function on the loop of the proxies and clients."""
        return self.portal.call(function, *arguments)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
        """A fresh connection, past all proxies, that no fault of the storm picks."""
        url = superuser_of(self.settings)
        return psycopg.connect(url, autocommit=autocommit, application_name="storm", connect_timeout=5)

    def rows(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(statement, values).fetchall()

    def tend(self) -> None:
        """Do a supervisor's work: start again what ended, and report a fault if the storm did not cause the end."""
        for member in self.members:
            if member.down or member.running.lives:
                continue
            code = member.running.process.returncode
            excused = self.found_no_database(member)
            if not excused:
                said = member.running.said()[-700:]
                self.findings.add("a process ended by itself", f"{member.name}, exit code {code}: {said}")
            self.findings.seen["ended without a database" if excused else "ended by itself"] += 1
            member.start_again()

    def found_no_database(self, member: Member) -> bool:
        """Whether the process may have ended because it could not reach PostgreSQL when it started."""
        lived = time.monotonic() - member.started
        was_away = self.database_away >= member.started - _START_UP
        return member.running.process.returncode in _NO_DATABASE and lived < _START_UP and was_away

    def is_ready(self, member: Member) -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"http://{LOOPBACK}:{member.port}/readyz", trust_env=False, timeout=5).is_success
        return False


@contextmanager
def open_site(folder: Path, portal: BlockingPortal, findings: Findings) -> Iterator[Site]:
    """Migrated servers that keep commits when they are killed, two APIs and two workers; all are ended afterwards."""
    with ExitStack() as stack:
        # What the operating system has been given survives the end of a process; a disk is not pulled out here.
        settings = {"fsync": "off", "log_min_messages": "fatal"}
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", settings=settings))
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        postgres.create_database("storm")
        url = postgres.url("storm")
        command.upgrade(alembic_config(url), "head")
        site = Site(postgres, redis, portal, _settings(url, redis.url()), findings, Proxy(redis.port))
        stack.callback(_close, site)
        site.call(site.redis_proxy.open)
        for number in range(APIS):
            port = any_free_port()
            member = _start(stack, site, f"api-{number}", ["-m", "services.cli", "api", "--port", str(port)], folder)
            member.port = port
            site.apis.append(member)
        for number in range(WORKERS):
            site.workers.append(_start(stack, site, f"worker-{number}", ["-m", "worker"], folder))
        yield site


def _close(site: Site) -> None:
    for proxy in site.proxies:
        if proxy.port:
            site.call(proxy.close)


def _start(stack: ExitStack, site: Site, name: str, arguments: Sequence[str], folder: Path) -> Member:
    proxy = Proxy(site.postgres.port)
    site.call(proxy.open)
    direct = site.settings
    settings = direct.model_copy(
        update={
            "database_url": _through(direct.database_url, proxy.port),
            "redis_url": _through(direct.redis_url, site.redis_proxy.port),
        }
    )
    started = stack.enter_context(running(arguments, settings, folder / f"{name}.log"))
    return Member(name, started, proxy)


def _settings(database_url: str, redis_url: str) -> Settings:
    return settings_for(database_url, redis_url).model_copy(
        update={
            "database_pool_size": POOL_SIZE,
            "database_max_overflow": OVERFLOW,
            "api_processes": APIS,
            "worker_processes": WORKERS,
            "outbox_poll_interval": 0.2,
            "outbox_batch_size": 50,
            # The storm's faults end; events that failed in one must not wait minutes for their next attempt.
            "outbox_retry_cap": 2.0,
        }
    )


def _through(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


def environment_without_proxies(site: Site) -> dict[str, str]:
    """For a command that is run beside the storm."""
    return {**os.environ, **environment_of(site.settings)}
