"""The real embedded servers: they start after any kind of end, on the same data, or say clearly why they cannot."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from services.local.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServerError, PortTaken, child
from services.local.embedded.ports import any_free_port
from services.local.embedded.postgres import PostgresBinaries, find_postgres


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Deeper than a unix socket's path may be, with spaces and a quote."""
    return tmp_path / "a folder's name" / ("long " * 20).strip()


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(folder / "postgres", durable=False) as running:
        yield running


@pytest.fixture
def redis(folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(folder / "redis") as running:
        yield running


def rows(server: EmbeddedPostgres) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url("shop")) as connection:
        return connection.execute("SELECT word FROM kept").fetchall()


def write_a_row(server: EmbeddedPostgres) -> None:
    server.create_database("shop")
    with psycopg.connect(server.url("shop")) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('kept')")


def kill(server: EmbeddedPostgres | EmbeddedRedis) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_postgres_keeps_its_data_across_a_stop(postgres: EmbeddedPostgres) -> None:
    write_a_row(postgres)
    postgres.stop()
    assert not postgres.running
    assert "database system is shut down" in child.tail(postgres.log)

    with EmbeddedPostgres(postgres.data, durable=False) as again:
        assert rows(again) == [("kept",)]


def test_postgres_comes_back_on_its_port_after_a_kill(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        write_a_row(server)
        port = server.port
        kill(server)
        assert (server.cluster / "postmaster.pid").exists()

        server.start()

        assert server.port == port
        assert rows(server) == [("kept",)]


@pytest.mark.skipif(sys.platform != "linux", reason="the old process is recognised through /proc")
def test_a_pid_file_that_names_a_process_of_ours_does_not_keep_postgres_from_starting(
    postgres: EmbeddedPostgres,
) -> None:
    kill(postgres)
    note = postgres.cluster / "postmaster.pid"
    other = note.read_text().split("\n", 1)[1]
    sleeper = subprocess.Popen(["sleep", "60"], cwd="/")
    try:
        note.write_text(f"{sleeper.pid}\n{other}")
        postgres.start()
        assert postgres.running
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_second_server_on_the_same_data_is_refused(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.embedded.server._LOCK_SECONDS", 0.1)
    with pytest.raises(EmbeddedServerError, match="is in use by another PostgreSQL"):
        EmbeddedPostgres(postgres.data).start()
    assert postgres.running


def test_data_of_another_major_version_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    (postgres.cluster / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedServerError, match=r"was written by PostgreSQL 12: no PostgreSQL 12 found"):
        EmbeddedPostgres(postgres.data).start()
    assert postgres.binaries is not None
    with pytest.raises(EmbeddedServerError, match=r"was written by PostgreSQL 12, but .* contains PostgreSQL"):
        EmbeddedPostgres(postgres.data, binaries=postgres.binaries).start()


def test_an_interrupted_first_start_is_repaired(folder: Path) -> None:
    half = folder / "postgres" / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(folder / "postgres", durable=False) as server:
        assert server.create_database("shop")


def test_a_server_that_does_not_start_shows_the_end_of_its_log(folder: Path) -> None:
    server = EmbeddedPostgres(folder, settings={"shared_buffers": "lots"}, durable=False)
    with pytest.raises(EmbeddedServerError, match="invalid value for parameter"):
        server.start()
    assert not server.running


def test_a_taken_port_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=f"port {port} is taken"):
            EmbeddedRedis(folder, port).start()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])
def test_a_port_taken_after_the_check_is_reported_by_the_server(
    folder: Path, kind: type[EmbeddedPostgres | EmbeddedRedis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.embedded.server.is_free", lambda _: True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is taken"):
            kind(folder, port).start()


def test_a_server_that_may_listen_anywhere_takes_another_port_if_another_process_was_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.embedded.server.is_free", lambda _: True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, taken, any_free_port()])
        monkeypatch.setattr("services.local.embedded.server.any_free_port", lambda: next(ports))
        with EmbeddedRedis(folder) as server:
            assert server.port != taken


@pytest.mark.parametrize("damaged", [None, "", "\0" * 32, "x" * 32], ids=["missing", "empty", "zeros", "another"])
def test_a_lost_password_of_postgres_is_set_again(folder: Path, damaged: str | None) -> None:
    """32 times `x` is a valid password, but not this server's."""
    with EmbeddedPostgres(folder, durable=False) as server:
        write_a_row(server)
    kept = folder / "password"
    if damaged is None:
        kept.unlink()
    else:
        kept.write_text(damaged)
    said: list[str] = []
    with EmbeddedPostgres(folder, durable=False, say=said.append) as again:
        assert rows(again) == [("kept",)]
        assert again.password == kept.read_text()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(again.url().replace(again.password, "wrong"))
    assert said[-1] == f"PostgreSQL did not accept the password in {kept}: it has been reset"
    # From now on it is the server's password.
    with EmbeddedPostgres(folder, durable=False, say=said.append) as again:
        assert rows(again) == [("kept",)]
    assert len(said) == (1 if damaged in (None, "x" * 32) else 2)


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])
def test_a_server_that_is_started_again_keeps_the_password_that_others_were_given(
    folder: Path, kind: type[EmbeddedPostgres | EmbeddedRedis]
) -> None:
    with kind(folder, durable=False) as server:
        url = server.url()
        kill(server)
        (folder / "password").write_text("")
        server.start()
        assert server.url() == url


def test_an_empty_pid_file_does_not_keep_postgres_from_starting(postgres: EmbeddedPostgres) -> None:
    kill(postgres)
    (postgres.cluster / "postmaster.pid").write_text("")
    postgres.start()
    assert postgres.running


def test_a_damaged_version_file_is_named(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    (postgres.cluster / "PG_VERSION").write_text("")
    with pytest.raises(EmbeddedServerError, match=r"PG_VERSION is damaged\. Restore the folder from a backup"):
        postgres.start()


def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    with pytest.raises(EmbeddedServerError, match=r"cannot start Redis in .*: File exists"):
        EmbeddedRedis(folder).start()


def test_postgres_accepts_only_the_password_and_listens_only_on_tcp(postgres: EmbeddedPostgres) -> None:
    wrong = postgres.url().replace(postgres.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    with psycopg.connect(postgres.url()) as connection:
        shown = connection.execute("SELECT current_setting('unix_socket_directories'), current_setting('fsync')")
        assert shown.fetchone() == ("", "off")
    assert (postgres.data / "password").stat().st_mode & 0o777 == 0o600


def test_postgres_knows_letters_beyond_ascii(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("CREATE EXTENSION pg_trgm")
        found = connection.execute("SELECT lower('ÉTÉ'), similarity('éclair', 'ÉCLAIR')").fetchone()
    assert found == ("été", 1.0)


def test_create_database_says_whether_it_did(postgres: EmbeddedPostgres) -> None:
    assert postgres.create_database('odd "name"')
    assert not postgres.create_database('odd "name"')


def test_redis_keeps_its_data_across_a_kill_and_a_stop(redis: EmbeddedRedis) -> None:
    with Redis.from_url(redis.url()) as client:
        client.set("word", "kept")
        client.execute_command("WAITAOF", 1, 0, 2000)
    port = redis.port
    kill(redis)
    redis.start()
    assert redis.port == port
    redis.stop()
    with EmbeddedRedis(redis.data) as again, Redis.from_url(again.url()) as client:
        assert client.get("word") == b"kept"


def zeros(content: bytes) -> bytes:
    return b"\0" * len(content)


def zeros_in_the_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + b"\0" * 50 + content[third + 50 :]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("appendonly.aof.1.incr.aof", zeros),
        ("appendonly.aof.1.incr.aof", zeros_in_the_middle),
        ("appendonly.aof.1.base.rdb", half),
        # This one makes the server crash.
        ("appendonly.aof.1.base.rdb", zeros_in_the_middle),
        ("appendonly.aof.manifest", zeros),
    ],
)
def test_redis_data_that_cannot_be_read_is_moved_aside(
    folder: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    with EmbeddedRedis(folder) as server, Redis.from_url(server.url()) as client:
        for number in range(100):
            client.set(f"word {number}", "kept")
        client.execute_command("WAITAOF", 1, 0, 2000)
    damaged = server.append_only / name
    content = damage(damaged.read_bytes())
    damaged.write_bytes(content)

    said: list[str] = []
    with EmbeddedRedis(folder, say=said.append) as again, Redis.from_url(again.url()) as client:
        assert client.dbsize() == 0
        client.set("word", "new")
        client.execute_command("WAITAOF", 1, 0, 2000)

    (aside,) = folder.glob("appendonlydir.unreadable-*")
    assert (aside / name).read_bytes() == content
    assert said == [f"Redis could not read its data. It was moved to {aside}, and Redis starts empty. No order is lost"]
    with EmbeddedRedis(folder, say=said.append) as again, Redis.from_url(again.url()) as client:
        assert client.get("word") == b"new"
    assert len(said) == 1


def test_redis_data_stays_in_place_if_something_else_prevents_the_start(folder: Path) -> None:
    with EmbeddedRedis(folder) as server, Redis.from_url(server.url()) as client:
        client.set("word", "kept")
        client.execute_command("WAITAOF", 1, 0, 2000)
    not_a_server = folder / "refuses"
    not_a_server.write_text("#!/bin/sh\nmkdir -p appendonlydir\necho no memory\nexit 1\n")
    not_a_server.chmod(0o700)
    with pytest.raises(EmbeddedServerError, match="no memory"):
        EmbeddedRedis(folder, binary=not_a_server).start()
    assert not list(folder.glob("appendonlydir.*"))
    with EmbeddedRedis(folder) as again, Redis.from_url(again.url()) as client:
        assert client.get("word") == b"kept"


def test_redis_accepts_only_the_password(redis: EmbeddedRedis) -> None:
    with Redis(port=redis.port) as client, pytest.raises(Exception, match="Authentication required"):
        client.ping()
    assert (redis.data / "server.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no death signal")
def test_the_servers_do_not_outlive_the_process_that_started_them(folder: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from services.local.embedded import EmbeddedPostgres, EmbeddedRedis\n"
        "data = Path(sys.argv[1])\n"
        "postgres, redis = EmbeddedPostgres(data / 'p', durable=False).start(), EmbeddedRedis(data / 'r').start()\n"
        "print(postgres.process.pid, redis.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        assert all(lives(pid) for pid in pids)
        starter.kill()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(lives(pid) for pid in pids)
    assert "database system is shut down" in child.tail(folder / "p" / "server.log")


def test_the_watchdog_stands_in_for_the_death_signal(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess\n"
        "from services.local.embedded.child import _start_watchdog\n"
        "sleeper = subprocess.Popen(['sleep', '60'])\n"
        "_start_watchdog(sleeper.pid, signal.SIGTERM)\n"
        "print(sleeper.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert lives(pid)
        starter.kill()
    deadline = time.monotonic() + 10
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a disguise")
@pytest.mark.parametrize("kind", ["namespace", "setuid"])
def test_as_root_postgres_runs_as_another_user(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_works", lambda _: kind == "namespace")
    child.disguise_for_server.cache_clear()
    try:
        # In a folder that no other user can read.
        (folder / "closed").mkdir(parents=True, mode=0o700)
        with EmbeddedPostgres(folder / "closed" / "postgres", durable=False) as server:
            assert server.process is not None
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            uid = int(status.split("Uid:")[1].split()[0])
            assert (uid == 0) == (kind == "namespace")
            write_a_row(server)
            assert rows(server) == [("kept",)]
    finally:
        child.disguise_for_server.cache_clear()


def test_the_search_for_binaries_says_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "services.local.embedded.postgres.postgres_folders", lambda: iter([tmp_path / "a", tmp_path / "b"])
    )
    monkeypatch.setattr(
        "services.local.embedded.postgres.inspect_binaries",
        lambda folder: PostgresBinaries(folder, 14) if folder.name == "b" else None,
    )
    with pytest.raises(EmbeddedServerError, match="no PostgreSQL 15 or newer found") as refusal:
        find_postgres()
    assert f"{tmp_path / 'a'}: no usable binaries" in str(refusal.value)
    assert f"{tmp_path / 'b'}: version 14" in str(refusal.value)
    assert find_postgres(14) == PostgresBinaries(tmp_path / "b", 14)


def test_stop_escalates_to_force() -> None:
    stubborn = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    with stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert child.stop(stubborn, (signal.SIGTERM, 0.2)) == -signal.SIGKILL
