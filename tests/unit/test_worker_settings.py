"""ARQ's client and ours read a Redis URL in the same way; a worker that cannot start says why in plain words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from arq.connections import RedisSettings
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from services.settings import Environment, LogFormat, Settings
from tests.processes import ROOT, Running, environment_of, running
from worker.runner import read_redis_url


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("redis://localhost:6379/0", {}),
        ("redis://localhost:6379/", {}),
        ("redis://", {}),
        ("redis://cache:6380/3", {"host": "cache", "port": 6380, "database": 3}),
        ("redis://cache?db=3", {"host": "cache", "database": 3}),
        ("redis://:p%40ss%2Fword@cache/1", {"host": "cache", "database": 1, "password": "p@ss/word"}),
        ("redis://me%3Atoo:p%25@cache", {"host": "cache", "username": "me:too", "password": "p%"}),
        ("redis://cache?socket_connect_timeout=4&socket_timeout=9", {"host": "cache", "conn_timeout": 4.0}),
        (
            "rediss://:p%40ss@cache:6380/2",
            {"host": "cache", "port": 6380, "database": 2, "password": "p@ss", "ssl": True},
        ),
        (
            "rediss://cache?ssl_ca_certs=/ca.pem&ssl_check_hostname=true",
            {"host": "cache", "ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": True},
        ),
        ("unix:///run/my%20redis.sock", {"unix_socket_path": "/run/my redis.sock"}),
        (
            "unix://:p%40ss@/run/redis.sock?db=2",
            {"unix_socket_path": "/run/redis.sock", "database": 2, "password": "p@ss"},
        ),
    ],
)
def test_a_url_means_to_arq_what_it_means_to_our_client(url: str, read: dict[str, Any]) -> None:
    found = read_redis_url(url)
    assert found == RedisSettings(**read)

    pool = Redis.from_url(url).connection_pool
    ours = pool.make_connection()
    assert isinstance(ours, SSLConnection) == found.ssl
    assert (ours.db, ours.username, ours.password) == (found.database, found.username, found.password)
    if isinstance(ours, UnixDomainSocketConnection):
        assert ours.path == found.unix_socket_path
    else:
        assert (ours.host, ours.port) == (found.host, found.port)


def ended(settings: Settings, log: Path, *arguments: str) -> tuple[int, Running]:
    """The exit code of `python ARGUMENTS`."""
    with running(arguments, settings, log) as process:
        return process.process.wait(30), process


@pytest.fixture
def development() -> Settings:
    return Settings(_env_file=None, environment=Environment.development, log_format=LogFormat.console)


def test_the_worker_takes_the_password_as_it_is_meant(development: Settings) -> None:
    # In its own process: importing the worker's settings reads the environment.
    script = "from worker.settings import WorkerSettings; print(WorkerSettings.redis_settings.password)"
    quoted = development.model_copy(update={"redis_url": "redis://:p%40ss@localhost:6379/"})
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment_of(quoted),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == "p@ss"


@pytest.mark.parametrize(("arguments", "code"), [(["-m", "worker"], 2), (["-m", "services.cli", "worker"], 1)])
def test_settings_that_are_not_valid_are_named(
    development: Settings, tmp_path: Path, arguments: list[str], code: int
) -> None:
    wrong = development.model_copy(update={"log_level": "LOUD"})
    exit_code, worker = ended(wrong, tmp_path / "log", *arguments)
    assert exit_code == code
    assert "the settings are not valid:\n  WAYBILL_LOG_LEVEL: " in worker.said()
    assert "Traceback" not in worker.said()


def test_without_a_database_the_start_fails_with_one_line(development: Settings, tmp_path: Path) -> None:
    away = development.model_copy(update={"database_url": "postgresql://somebody:hidden@127.0.0.1:1/nowhere"})
    exit_code, worker = ended(away, tmp_path / "log", "-m", "worker")
    assert exit_code == 1
    (line,) = worker.said().splitlines()
    assert "cannot connect to the database at postgresql" in line
    assert "127.0.0.1:1/nowhere: " in line
    assert "hidden" not in line


def test_a_time_limit_beyond_that_of_idle_transactions_ends_the_start_with_one_line(
    development: Settings, tmp_path: Path
) -> None:
    hasty = development.model_copy(update={"database_idle_in_transaction_timeout": 30.0})
    exit_code, worker = ended(hasty, tmp_path / "log", "-m", "worker")
    assert exit_code == 2
    (line,) = worker.said().splitlines()
    assert (
        "the handler of 'order.placed' may take 30 s, but the database ends transactions that are idle for 30 s" in line
    )
