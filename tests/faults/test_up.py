"""The real `waybill up`: in a folder with a space in its name, with ports taken, killed and started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psycopg
import pytest
from alembic import command
from psycopg import sql
from sqlalchemy import make_url

from migrations.config import alembic_config
from services.local.embedded import EmbeddedPostgres
from services.local.home import hold
from tests.started import (
    START_SECONDS,
    Up,
    all_of,
    answers,
    is_confirmed,
    lives,
    order_is_confirmed,
    signed_in,
    up,
    wait_for,
)

PORTS = {8000: "the API", 5432: "PostgreSQL", 6379: "Redis"}


@pytest.fixture
def database_of_an_ordinary_role(empty_database_url: str) -> Iterator[str]:
    """The address of an empty database whose owner is not a superuser."""
    url = make_url(empty_database_url)
    name, owner = sql.Identifier(str(url.database)), sql.Identifier(f"owner_{url.database}"[:63])
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pw'").format(owner))
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner))
    yield url.set(username=owner.as_string().strip('"'), password="pw").render_as_string(hide_password=False)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(name))
        connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(owner))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder with spaces")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Up]:
    with ExitStack() as taken:
        for port in PORTS:
            # If the port is already taken, so much the better.
            try:
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        with up(folder, "--workers", "2") as started:
            yield started


def test_if_ports_are_taken_the_next_free_ones_are_used(running: Up) -> None:
    facts = running.facts()
    for port, what in PORTS.items():
        assert f"Port {port} is taken: {what} listens on" in running.said()
    assert httpx2.URL(facts.api_url).port not in (None, 8000)


def test_an_order_is_placed_and_confirmed(running: Up) -> None:
    assert order_is_confirmed(running.facts())


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_reports_are_in_a_second_database_of_the_same_server(running: Up) -> None:
    facts = running.facts()
    assert facts.analytics_url is not None
    server, _, name = facts.analytics_url.rpartition("/")
    assert (name, server) == ("waybill_analytics", facts.database_url.rpartition("/")[0])
    order_is_confirmed(facts)
    seller = facts.users[-1]
    with httpx2.Client(base_url=facts.api_url, trust_env=False, timeout=10) as client:
        token = client.post("/v1/token", data={"username": seller.email, "password": seller.password}).json()
        client.headers["Authorization"] = f"Bearer {token['access_token']}"

        def is_reported() -> bool:
            reply = client.get("/v1/reports/sales")
            return reply.is_success and bool(reply.json()["data"])

        wait_for(is_reported, "the sale to be reported")


def test_the_printed_commands_work_as_they_are(running: Up) -> None:
    printed = [line.strip() for line in running.said().splitlines()]
    sign_in_line, order_line, look_line, key_line = [line for line in printed if line.startswith(("TOKEN=", "curl "))]
    script = f"{sign_in_line}\n{order_line}\necho\necho ----\n{look_line}\n"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    placed, listed = ran.stdout.split("----\n")
    assert placed.startswith("HTTP/1.1 201"), placed
    assert json.loads(listed)["data"][0]["id"] == json.loads(placed.strip().splitlines()[-1])["id"]
    shown = running.facts().api_key
    assert shown is not None
    assert f"{shown.key}   scopes {' '.join(shown.scopes)}" in running.said()
    by_key = subprocess.run(["bash", "-c", key_line], capture_output=True, text=True, check=True, timeout=60).stdout
    assert by_key.startswith("HTTP/1.1 201"), by_key


def test_only_the_owner_can_read_the_facts(running: Up) -> None:
    facts = running.facts()
    assert (running.data / "waybill.json").stat().st_mode & 0o777 == 0o600
    assert facts.operator is not None
    assert facts.admin is not None
    assert len(all_of(facts.pids)) == 5
    assert all(lives(pid) for pid in all_of(facts.pids))
    assert facts.pids.supervisor == running.process.pid


def test_processes_run_with_a_role_that_cannot_change_the_tables(running: Up) -> None:
    facts = running.facts()
    assert facts.migration_database_url is not None
    assert facts.read_database_url is not None
    with psycopg.connect(facts.database_url) as connection:
        seen = connection.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'waybill-%'"
        ).fetchall()
        assert seen == [("waybill_app",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SET session_replication_role = replica")
    with psycopg.connect(facts.migration_database_url) as owner:
        assert owner.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        owner.execute("ALTER TABLE orders ADD COLUMN more text")
        owner.rollback()
    with psycopg.connect(facts.read_database_url) as reader:
        reader.execute("SELECT count(*) FROM orders")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT hashed_password FROM users")
    for pid in (facts.pids.api, *facts.pids.workers):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "WAYBILL_DATABASE_URL=" in environment
        assert "WAYBILL_MIGRATION_" not in environment
    for log in (running.data / "logs").glob("*.log"):
        assert "superuser" not in log.read_text()


def test_the_data_of_a_release_with_one_role_is_taken_over(tmp_path: Path) -> None:
    with hold(tmp_path / "data") as home, EmbeddedPostgres(home.path / "postgres") as postgres:
        postgres.create_database("waybill")
        command.upgrade(alembic_config(postgres.url("waybill")), "head")
        superuser = postgres.url("waybill")
    with up(tmp_path, "--workers", "1") as started:
        order_is_confirmed(started.facts())
        port = make_url(started.facts().database_url).port
        at_its_port = make_url(superuser).set(port=port).render_as_string(hide_password=False)
        with psycopg.connect(at_its_port) as connection:
            owners = connection.execute(
                "SELECT DISTINCT relowner::regrole::text FROM pg_class"
                " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S')"
            ).fetchall()
        assert owners == [("waybill_owner",)]


def test_a_second_instance_on_the_same_data_is_refused(running: Up) -> None:
    second = Up(running.folder)
    assert second.process.wait(30) == 1
    assert f"in use by another `waybill up` (process {running.process.pid})" in second.said()
    assert running.process.poll() is None


@pytest.mark.parametrize("victim", ["api", "workers", "redis", "postgres"])
def test_killed_processes_come_back_at_the_same_address(running: Up, victim: str) -> None:
    before = running.facts()
    old = before.pids.workers if victim == "workers" else [getattr(before.pids, victim)]
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        now = running.facts().pids
        new = now.workers if victim == "workers" else [getattr(now, victim)]
        return len(new) == len(old) and None not in new and not set(new) & set(old) and all(map(lives, new))

    wait_for(is_back, f"{victim} to come back")
    after = running.facts()
    assert (after.api_url, after.database_url, after.redis_url) == (
        before.api_url,
        before.database_url,
        before.redis_url,
    )
    assert "was killed by SIGKILL" in running.said()
    with httpx2.Client(base_url=after.api_url, trust_env=False) as client:
        wait_for(lambda: answers(client), "the API to be ready again")
    assert order_is_confirmed(after)


def test_ctrl_c_stops_everything_cleanly_and_the_next_run_has_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "another folder"
    folder.mkdir()
    with up(folder) as first:
        facts = first.facts()
        order = order_is_confirmed(facts)
        assert first.interrupt() == 0
    assert not any(lives(pid) for pid in all_of(facts.pids))
    log = (first.data / "postgres" / "server.log").read_text().strip()
    assert log.endswith("database system is shut down")
    assert "was not properly shut down" not in log
    assert all_of(first.facts().pids) == []

    with up(folder) as second:
        assert (second.facts().users, second.facts().api_key) == (facts.users, facts.api_key)
        with signed_in(second.facts()) as client:
            assert is_confirmed(client, order)


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        pids = all_of(first.facts().pids)
        first.process.kill()
        first.process.wait()
        wait_for(lambda: not any(lives(pid) for pid in pids), "the children to leave", 15.0)
    with up(tmp_path) as second:
        assert order_is_confirmed(second.facts())


def test_outside_development_nothing_is_seeded(tmp_path: Path, database_of_an_ordinary_role: str) -> None:
    (tmp_path / ".env").write_text(
        "WAYBILL_ENVIRONMENT=production\nWAYBILL_EMAIL_VERIFICATION=false\n"
        f"WAYBILL_DATABASE_URL={database_of_an_ordinary_role}\n"
    )
    with up(tmp_path, "--seed") as started:
        facts = started.facts()
        assert facts.environment == "production"
        assert facts.pids.postgres is None
        assert (facts.operator, facts.admin, facts.users, facts.product_ids) == (None, None, [], [])
        assert "waybill users create EMAIL --role admin" in started.said()


def test_a_given_database_is_changed_only_with_seed(tmp_path: Path, empty_database_url: str) -> None:
    url = make_url(empty_database_url)
    (tmp_path / ".env").write_text(f"WAYBILL_DATABASE_URL={empty_database_url}\n")
    failed = Up(tmp_path)
    assert failed.process.wait(START_SECONDS) == 1
    assert (
        f"`waybill up` would upgrade the database {url.database} on {url.host} port {url.port} (WAYBILL_DATABASE_URL) "
        "to the newest schema, and create demo users, among them two operators and an admin"
    ) in failed.said()
    assert "Nothing has been changed. If you want that, run `waybill up --seed`." in failed.said()
    assert url.password is None or url.password not in failed.said()
    assert not failed.data.exists()
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regclass('users')").fetchone() == (None,)
    with up(tmp_path, "--seed") as started:
        assert started.facts().operator is not None
        assert started.facts().pids.postgres is None


def test_a_terminal_is_asked_before_a_given_database_is_changed(tmp_path: Path, empty_database_url: str) -> None:
    (tmp_path / ".env").write_text(f"WAYBILL_DATABASE_URL={empty_database_url}\n")
    ours, theirs = os.openpty()
    os.write(ours, b"n\n")
    failed = Up(tmp_path, stdin=theirs)
    assert failed.process.wait(START_SECONDS) == 1
    os.close(ours)
    os.close(theirs)
    assert "Continue? [y/N]" in failed.said()
    assert "Nothing has been changed" in failed.said()


def test_the_servers_and_the_api_listen_on_this_machine_only(running: Up) -> None:
    pids = running.facts().pids
    for pid in all_of(pids):
        rows = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
        ]
        held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
        hosts = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}
        assert hosts == (set() if pid in pids.workers else {"0100007F"})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7"])
def test_it_serves_no_other_machine_and_says_what_would(tmp_path: Path, host: str) -> None:
    failed = Up(tmp_path, "--host", host)
    assert failed.process.wait(START_SECONDS) == 1
    assert "`waybill up` serves this machine only" in failed.said()
    assert "run `waybill api --host ADDRESS` with settings of your own" in failed.said()
    assert not failed.data.exists()


def test_a_setting_that_is_not_valid_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WAYBILL_LOG_LEVEL=LOUD\n")
    failed = Up(tmp_path)
    assert failed.process.wait(START_SECONDS) == 1
    assert "WAYBILL_LOG_LEVEL" in failed.said()
    assert "Traceback" not in failed.said()


def test_a_folder_with_other_files_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "data" / "logs").mkdir(parents=True)
    (tmp_path / "data" / "thesis.tex").touch()
    failed = Up(tmp_path)
    assert failed.process.wait(START_SECONDS) == 1
    assert "it contains other files (thesis.tex, logs)" in failed.said()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["logs", "thesis.tex"]


def test_clean_data_removes_everything_that_a_run_leaves(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        assert first.interrupt() == 0
    command = [sys.executable, "-P", "-m", "services.cli", "clean-data", "--data-dir", "data"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert not first.data.exists()
