"""The environment of a benchmark: its own servers in a temporary folder, migrated databases, Waybill's processes."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from psycopg import sql
from pydantic import SecretStr
from redis import Redis

from migrations.config import alembic_config
from services.database import open_database
from services.local.embedded import EmbeddedPostgres, EmbeddedRedis, child
from services.local.embedded.ports import LOOPBACK, any_free_port
from services.local.embedded.postgres import SUPERUSER
from services.operations import service as operations
from services.operations.schemas import Books
from services.settings import Environment, LogFormat, Settings
from services.unit_of_work import UnitOfWork

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
# Durable as in production; a checkpoint within ten measured seconds would measure the disk and not Waybill.
_OWNER = "owner"
_POSTGRES_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@dataclass(frozen=True, slots=True)
class Stage:
    """PostgreSQL (fsync and synchronous_commit on) and Redis, running."""

    folder: Path
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    secret: str

    @property
    def postgres_pid(self) -> int:
        assert self.postgres.process is not None
        return self.postgres.process.pid

    def url(self, database: str) -> str:
        """The address for Waybill: its role owns the tables, but is not a superuser, which production refuses."""
        return self.postgres.url(database).replace(f"//{SUPERUSER}:", f"//{_OWNER}:", 1)

    def settings(self, database: str, **more: Any) -> Settings:
        """The settings of Waybill's processes: as in production, with the benchmark's servers.

        There are no limits on requests, since a benchmark sends as many as it can from a few callers.
        """
        unlimited = {name: 0 for name in Settings.model_fields if name.startswith("rate_limit_")}
        return Settings(
            _env_file=None,
            environment=Environment.production,
            log_format=LogFormat.json,
            database_url=self.url(database),
            redis_url=self.redis.url(),
            secret_key=self.secret,
            totp_required=False,
            email_verification=False,
            **(unlimited | more),
        )

    def migrate(self, database: str) -> None:
        """A new database at the newest revision."""
        self.postgres.create_database(database)
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            statement = sql.SQL("ALTER DATABASE {} OWNER TO {}")
            connection.execute(statement.format(sql.Identifier(database), sql.Identifier(_OWNER)))
        command.upgrade(alembic_config(self.url(database)), "head")

    def clone(self, source: str, database: str) -> None:
        """Copy a database without connections, and do a checkpoint, so that it does not happen later."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY")
            connection.execute(statement.format(*map(sql.Identifier, (database, _OWNER, source))))
            connection.execute("CHECKPOINT")

    def drop(self, database: str) -> None:
        """Drop a database, even if there are connections."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(database)))

    @contextmanager
    def copy(self, source: str, database: str) -> Iterator[str]:
        """A copy of a database without connections, dropped on exit; yields its address."""
        self.clone(source, database)
        try:
            yield self.postgres.url(database)
        finally:
            self.drop(database)

    @contextmanager
    def process(self, name: str, arguments: list[str], settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
        """A process with these settings, stopped on exit; its output goes to `NAME.log`."""
        started = child.spawn(
            [sys.executable, "-P", *arguments],
            cwd=self.folder,
            log=self.folder / f"{name}.log",
            death_signal=signal.SIGTERM,
            environment=environment_of(settings),
        )
        try:
            yield started
        finally:
            child.stop(started, (signal.SIGTERM, 15.0))

    def log(self, name: str) -> str:
        return child.tail(self.folder / f"{name}.log")


@contextmanager
def open_stage(**postgres_settings: str) -> Iterator[Stage]:
    """Start the servers in a temporary folder; on exit, stop them and remove the folder."""
    with tempfile.TemporaryDirectory(prefix="waybill-benchmark-") as name:
        folder = Path(name)
        postgres = EmbeddedPostgres(folder / "postgres", settings=_POSTGRES_SETTINGS | postgres_settings, durable=True)
        with postgres, EmbeddedRedis(folder / "redis", durable=True) as redis:
            with psycopg.connect(postgres.url(), autocommit=True) as connection:
                role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(role.format(sql.Identifier(_OWNER), postgres.password))
            yield Stage(folder, postgres, redis, secrets.token_urlsafe(48))


@contextmanager
def running_api(stage: Stage, settings: Settings, name: str = "api") -> Iterator[tuple[int, int]]:
    """One API process that is ready; yields its process id and its port. Its output goes to `NAME.log`."""
    port = any_free_port()
    arguments = ["-m", "services.cli", "api", "--port", str(port)]
    with stage.process(name, arguments, settings) as process:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://{LOOPBACK}:{port}/readyz"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the API did not start:\n{stage.log(name)}")
            time.sleep(0.05)
        yield process.pid, port


@contextmanager
def running_worker(stage: Stage, settings: Settings) -> Iterator[int]:
    """One worker process that is connected and idle; yields its process id."""
    with stage.process("worker", ["-m", "worker"], settings) as process:
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(settings.redis_url) as redis:
            # Its listener waits for the doorbell once it has checked the outbox for the first time.
            while not any(entry["cmd"] == "blpop" for entry in redis.client_list()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the worker did not start:\n{stage.log('worker')}")
                time.sleep(0.05)
        # The jobs that run at startup take a moment.
        time.sleep(1)
        yield process.pid


def run_beside(
    module: str, job: Mapping[str, Any], *, python: str | Path = sys.executable, settings: Settings | None = None
) -> dict[str, Any]:
    """Run `python -m MODULE` with `job` as JSON on its standard input; its output is the result.

    `settings` are passed in the environment, as to Waybill's own processes.
    """
    finished = subprocess.run(
        [python, "-m", module],
        cwd=ROOT,
        env=environment_of(settings) if settings else None,
        input=json.dumps(job).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def check_books(stage: Stage, database: str) -> None:
    """End the benchmark if the books do not balance: the figures would be meaningless."""

    async def count() -> Books:
        async with open_database(stage.settings(database), "benchmark") as opened, UnitOfWork(opened.read) as uow:
            return await operations.books(uow)

    books = asyncio.run(count())
    if not books.balanced:
        sys.exit(f"the books of {database} do not balance: {books}")


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a process with these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    values = settings.model_dump(mode="json", exclude_unset=True)
    for name in values:
        if isinstance(secret := getattr(settings, name), SecretStr):
            values[name] = secret.get_secret_value()
    # So that the benchmark's own modules are found from any working directory.
    return kept | {f"WAYBILL_{name.upper()}": str(value) for name, value in values.items()} | {"PYTHONPATH": str(ROOT)}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
