"""TLS to PostgreSQL and Redis: every connection uses it, and what is wrong with it is said in one line."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from arq.connections import create_pool
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import make_url

from services.cli.database_roles import prepare
from services.database import close, make_engine
from services.local.embedded import EmbeddedPostgres
from services.settings import Settings
from services.startup import DatabaseAway, check_server
from tests.conftest import settings_for
from tests.faults.edge import changed
from tests.faults.test_start import ALEMBIC, COMMANDS, MIGRATE, WORKER, assert_plain, run
from tests.pgbouncer import running_pgbouncer
from tests.processes import running_api, running_worker, wait_until
from tests.roles import APPLICATION, OWNER, READER, as_role, roles_of
from tests.servers import TestServers
from tests.tls import Authority, Pair, PostgresWithTls, RedisWithTls
from worker.context import open_redis
from worker.runner import read_redis_url

CERTIFIED = "certified"
"""A role that signs in with a certificate."""

HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Authority:
    """The authority that signed the server's certificate, and those of clients."""
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Authority:
    """An authority that has signed nothing that is used."""
    return Authority(folder, "theirs")


@pytest.fixture(scope="module")
def server(folder: Path, ours: Authority) -> Iterator[PostgresWithTls]:
    """A server that accepts nothing but TLS, with a primary and an analytics database."""
    with PostgresWithTls(folder / "postgres", ours.sign("server", hosts=HOSTS), ours, (CERTIFIED,)) as running:
        for name in ("shop", "reports"):
            running.create_database(name)
        yield running


def with_options(url: str, **options: object) -> str:
    query = {name: str(value) for name, value in options.items()}
    return make_url(url).set(query=query).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def migrated(server: PostgresWithTls, ours: Authority, servers: TestServers) -> Settings:
    """Settings whose addresses all verify the server by its name; roles and tables were also made over TLS."""
    options = {"sslmode": "verify-full", "sslrootcert": ours.certificate}
    shop, reports = (with_options(server.url(name), **options) for name in ("shop", "reports"))
    for url in (shop, reports):
        prepare(make_url(url), roles_of(url), "public")
    settings = settings_for(as_role(APPLICATION, shop), servers.redis_url).model_copy(
        update={
            "migration_database_url": as_role(OWNER, shop),
            "database_replica_url": as_role(READER, shop),
            "analytics_url": as_role(APPLICATION, reports),
            "migration_analytics_url": as_role(OWNER, reports),
        }
    )
    for arguments in (MIGRATE, [*MIGRATE, "--database", "analytics"], ALEMBIC):
        code, said = run(arguments, settings)
        assert code == 0, said
    return settings


def test_every_process_works_over_tls(server: PostgresWithTls, migrated: Settings, tmp_path: Path) -> None:
    """The server accepts nothing else."""
    expected = {
        "waybill-api",
        "waybill-api-position",
        "waybill-api-probe",
        "waybill-api-replica",
        "waybill-worker",
        "waybill-worker-analytics",
        "waybill-worker-outbox",
    }
    found: dict[str, bool] = {}

    def look() -> bool:
        with psycopg.connect(server.url()) as connection:
            rows = connection.execute(
                "SELECT application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
                " WHERE application_name LIKE 'waybill-%'"
            ).fetchall()
        found.update({str(name): bool(ssl) for name, ssl in rows})
        return expected <= found.keys()

    with running_api(migrated, tmp_path / "api.log") as (_, url), running_worker(migrated, tmp_path / "worker.log"):
        wait_until(lambda: _is_ready(url), "the API to be ready")
        wait_until(look, f"connections of {expected}")
    assert all(found.values()), found


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).is_success
    except httpx2.TransportError:
        return False


def test_a_command_works_over_tls(migrated: Settings) -> None:
    code, said = run(COMMANDS[0], migrated)
    assert code == 0, said


async def reach(settings: Settings) -> tuple[bool, str | None]:
    """Whether the connection uses TLS, and whose certificate it has shown. Raises `DatabaseAway`."""
    engine = make_engine(settings, "test", pool_size=1)
    try:
        await check_server(engine, settings)
        async with engine.connect() as connection:
            seen = await connection.exec_driver_sql(
                "SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            )
            row = seen.one()
            return row.ssl, row.client_dn
    finally:
        await close(engine)


def reaching(
    server: EmbeddedPostgres, *, user: str | None = None, host: str | None = None, **options: object
) -> Settings:
    url = make_url(with_options(server.url(), **options))
    url = url.set(host=host or url.host, username=user or url.username)
    return settings_for(url.render_as_string(hide_password=False), "redis://127.0.0.1:1/0")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_with_the_right_certificate_is_reached(
    server: PostgresWithTls, ours: Authority, mode: str, host: str
) -> None:
    assert await reach(reaching(server, host=host, sslmode=mode, sslrootcert=ours.certificate)) == (True, None)


@pytest.mark.parametrize("mode", [None, "allow", "prefer", "require"])
async def test_without_authorities_tls_is_used_and_the_certificate_not_checked(
    server: PostgresWithTls, mode: str | None
) -> None:
    options = {} if mode is None else {"sslmode": mode}
    assert await reach(reaching(server, **options)) == (True, None)


async def test_no_tls_can_be_asked_for(server: PostgresWithTls) -> None:
    with pytest.raises(DatabaseAway, match="no encryption"):
        await reach(reaching(server, sslmode="disable"))


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_certificate_that_another_authority_signed_is_refused(
    server: PostgresWithTls, theirs: Authority, mode: str
) -> None:
    with pytest.raises(DatabaseAway) as refused:
        await reach(reaching(server, sslmode=mode, sslrootcert=theirs.certificate))
    said = str(refused.value)
    assert "its TLS certificate is refused: no certificate in sslrootcert has signed it (" in said
    assert "\n" not in said


@pytest.fixture(scope="module")
def other_name(folder: Path, ours: Authority) -> Iterator[PostgresWithTls]:
    """A server whose certificate is for another host."""
    with PostgresWithTls(folder / "other", ours.sign("other", hosts=("db.example",)), ours) as running:
        yield running


@pytest.mark.parametrize("host", HOSTS)
async def test_a_certificate_for_another_host_is_refused(
    other_name: PostgresWithTls, ours: Authority, host: str
) -> None:
    with pytest.raises(DatabaseAway, match=f"its TLS certificate is refused: .*mismatch.*'{host}'"):
        await reach(reaching(other_name, host=host, sslmode="verify-full", sslrootcert=ours.certificate))
    assert await reach(reaching(other_name, host=host, sslmode="verify-ca", sslrootcert=ours.certificate))


async def test_an_expired_certificate_is_refused(folder: Path, ours: Authority) -> None:
    expired = ours.sign("expired", hosts=HOSTS, lasts=timedelta(days=-1))
    with (
        PostgresWithTls(folder / "expired", expired, ours) as server,
        pytest.raises(DatabaseAway, match=r"its TLS certificate is refused: certificate has expired$"),
    ):
        await reach(reaching(server, sslmode="verify-ca", sslrootcert=ours.certificate))


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_refused_if_tls_is_required(
    database_url: str, ours: Authority, mode: str
) -> None:
    settings = settings_for(with_options(database_url, sslmode=mode, sslrootcert=ours.certificate), "redis://x:1/0")
    with pytest.raises(DatabaseAway, match=r"it does not offer TLS, which the sslmode in the address requires$"):
        await reach(settings)


async def test_a_client_signs_in_with_its_certificate(server: PostgresWithTls, ours: Authority) -> None:
    with psycopg.connect(server.url(), autocommit=True) as administrator:
        administrator.execute(f"CREATE ROLE {CERTIFIED} LOGIN")
    mine, another = ours.sign(CERTIFIED), ours.sign("somebody")
    options: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": ours.certificate}

    def showing(pair: Pair) -> Settings:
        return reaching(server, user=CERTIFIED, sslcert=pair.certificate, sslkey=pair.key, **options)

    assert await reach(showing(mine)) == (True, f"/CN={CERTIFIED}")
    with pytest.raises(DatabaseAway, match="certificate authentication failed"):
        await reach(showing(another))
    with pytest.raises(DatabaseAway, match="requires a valid client certificate"):
        await reach(reaching(server, user=CERTIFIED, **options))


async def test_a_client_certificate_that_the_server_does_not_know_is_refused(
    server: PostgresWithTls, ours: Authority, theirs: Authority
) -> None:
    pair = theirs.sign("stranger")
    options: dict[str, Any] = {"sslrootcert": ours.certificate, "sslcert": pair.certificate, "sslkey": pair.key}
    with pytest.raises(DatabaseAway, match=r"it may not accept that certificate$"):
        await reach(reaching(server, sslmode="verify-full", **options))


def test_a_process_says_in_one_line_what_is_wrong(migrated: Settings, theirs: Authority) -> None:
    url = make_url(migrated.database_url).update_query_dict({"sslrootcert": str(theirs.certificate)})
    wrong = url.render_as_string(hide_password=False)
    for arguments in (WORKER, COMMANDS[0]):
        code, said = run(arguments, changed(migrated, database_url=wrong))
        assert code != 0
        assert_plain(said, "cannot connect to", "no certificate in sslrootcert has signed it")
    code, said = run(MIGRATE, changed(migrated, migration_database_url=wrong))
    assert code != 0
    assert_plain(said, "cannot connect to", "no certificate in sslrootcert has signed it")


def test_processes_work_through_a_pooler_over_tls(migrated: Settings, server: PostgresWithTls, folder: Path) -> None:
    pair = Pair(folder / "server.crt", folder / "server.key")
    tls = {
        "client_tls_sslmode": "require",
        "client_tls_cert_file": str(pair.certificate),
        "client_tls_key_file": str(pair.key),
        "server_tls_sslmode": "require",
    }
    direct = make_url(migrated.database_url)
    with running_pgbouncer(direct.set(query={}).render_as_string(hide_password=False), **tls) as pooled:
        address = make_url(pooled).set(query=direct.query).render_as_string(hide_password=False)
        code, said = run(COMMANDS[0], changed(migrated, database_url=address))
        assert code == 0, said
        plain = make_url(pooled).set(query={"sslmode": "disable"}).render_as_string(hide_password=False)
        assert run(COMMANDS[0], changed(migrated, database_url=plain))[0] != 0


@pytest.fixture(scope="module")
def redis(folder: Path, ours: Authority) -> Iterator[RedisWithTls]:
    with RedisWithTls(folder / "redis", ours.sign("redis", hosts=HOSTS)) as running:
        yield running


async def test_redis_is_reached_over_tls(redis: RedisWithTls, migrated: Settings, ours: Authority) -> None:
    url = f"{redis.url()}?ssl_ca_certs={ours.certificate}&ssl_check_hostname=true"
    async with open_redis(changed(migrated, redis_url=url)) as client:
        assert await client.ping()
    pool = await create_pool(read_redis_url(url))
    assert await pool.ping()
    await pool.aclose()


async def test_a_redis_whose_certificate_another_authority_signed_is_refused(
    redis: RedisWithTls, migrated: Settings, theirs: Authority
) -> None:
    url = f"{redis.url()}?ssl_ca_certs={theirs.certificate}"
    async with open_redis(changed(migrated, redis_url=url)) as client:
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await client.ping()


def test_orders_wake_workers_over_a_redis_with_tls(
    redis: RedisWithTls, migrated: Settings, ours: Authority, tmp_path: Path
) -> None:
    given = changed(migrated, redis_url=f"{redis.url()}?ssl_ca_certs={ours.certificate}")
    with running_api(given, tmp_path / "api.log") as (_, url), running_worker(given, tmp_path / "worker.log") as worker:
        wait_until(lambda: _is_ready(url), "the API to be ready")
        assert httpx2.get(f"{url}/readyz", trust_env=False).json()["redis"] == "ok"
        with psycopg.connect(make_url(given.database_url).set(drivername="postgresql").render_as_string(False)) as seen:
            wait_until(lambda: seen.execute("SELECT count(*) FROM workers").fetchone() != (0,), "a heartbeat")
        assert worker.lives
    assert "certificate" not in worker.said()
