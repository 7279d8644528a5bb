"""The PostgreSQL and Redis that a test session runs against.

The given ones if `WAYBILL_TEST_DATABASE_URL` and `WAYBILL_TEST_REDIS_URL` are set; otherwise containers if a Docker
engine answers; otherwise the embedded servers in a temporary folder, in memory if there is room.
"""

import fcntl
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException

from services.local.embedded import EmbeddedPostgres, EmbeddedRedis

POSTGRES_IMAGE = "postgres:18-alpine"
REDIS_IMAGE = "redis:8-alpine"
# Many databases are cloned from the template, each with its own connections.
_POSTGRES_SETTINGS = {
    "max_connections": "300",
    "max_prepared_transactions": "4",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # The write-ahead log may be in memory.
    "max_wal_size": "256MB",
}

_IN_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
"""Bytes of memory that must be free for the servers of one session. They take less than one GiB."""
_PREFIX = "waybill-tests-"


@dataclass(frozen=True, slots=True)
class TestServers:
    """`postgres_url` is a superuser's address of the database `postgres`, without a driver name."""

    __test__ = False

    postgres_url: str
    redis_url: str


class ServerKind(StrEnum):
    given = "given"
    docker = "docker"
    embedded = "embedded"


def choose_servers(environment: Mapping[str, str], connect: Callable[[], Any] = docker.from_env) -> ServerKind:
    """What to run against. `connect` makes a Docker client; if no engine answers, it or its ping fails."""
    given = [name for name in ("WAYBILL_TEST_DATABASE_URL", "WAYBILL_TEST_REDIS_URL") if environment.get(name)]
    if len(given) == 2:
        return ServerKind.given
    if given:
        raise ValueError(f"only {given[0]} is set; set both WAYBILL_TEST_DATABASE_URL and WAYBILL_TEST_REDIS_URL")
    return ServerKind.docker if _engine_answers(connect) else ServerKind.embedded


def _engine_answers(connect: Callable[[], Any]) -> bool:
    # The Docker client leaks the socket it could not connect. Collected here, its warning does not reach a test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with closing(connect()) as client:
                return bool(client.ping())
        except (DockerException, OSError):
            return False
        finally:
            gc.collect()


@contextmanager
def test_servers() -> Iterator[TestServers]:
    """Both servers, running; stopped on exit unless they were given."""
    match choose_servers(os.environ):
        case ServerKind.given:
            yield TestServers(os.environ["WAYBILL_TEST_DATABASE_URL"], os.environ["WAYBILL_TEST_REDIS_URL"])
        case ServerKind.docker:
            with _containers() as servers:
                yield servers
        case ServerKind.embedded:
            with _embedded() as servers:
                yield servers


# Its name would make pytest collect it in every module that imports it.
test_servers.__test__ = False  # type: ignore[attr-defined]


@contextmanager
def _embedded() -> Iterator[TestServers]:
    with _folder(_IN_MEMORY if _has_room(_IN_MEMORY) else Path(tempfile.gettempdir())) as folder:
        postgres = EmbeddedPostgres(folder / "postgres", settings=_POSTGRES_SETTINGS, durable=False)
        with postgres, EmbeddedRedis(folder / "redis", durable=False) as redis:
            yield TestServers(postgres.url(), redis.url())


def _has_room(memory: Path) -> bool:
    """Whether the servers fit in memory. There, creating the 600 files of a database takes 20 ms instead of 400."""
    try:
        available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
        return min(shutil.disk_usage(memory).free, int(available.split()[1]) * 1024) >= _ROOM
    except (OSError, StopIteration):
        return False


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A folder that is removed afterwards. If this process is killed, the next session frees the memory."""
    for left in parent.glob(f"{_PREFIX}*") if parent == _IN_MEMORY else ():
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}", dir=parent))
    with _locked(made):
        # Another session that starts now would remove one that is not locked yet.
        folder = made.rename(parent / made.name.removeprefix("new-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process. Raises `OSError` if another session holds it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


@contextmanager
def _containers() -> Iterator[TestServers]:
    # Imported here: it reads the Docker configuration on import, and is useless without an engine.
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    flags = " ".join(f"-c {name}={value}" for name, value in _POSTGRES_SETTINGS.items())
    postgres = PostgresContainer(POSTGRES_IMAGE, driver=None).with_command(f"postgres {flags}")
    ready = LogMessageWaitStrategy("Ready to accept connections")
    redis = DockerContainer(REDIS_IMAGE).with_exposed_ports(6379).waiting_for(ready)
    with postgres, redis:
        redis_url = f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
        yield TestServers(postgres.get_connection_url(), redis_url)
