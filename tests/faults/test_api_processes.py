"""`waybill api --workers N`: several processes behind one port."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import psycopg
import pytest
from uvicorn import Config

from services.api.processes import Process
from services.local.embedded.ports import any_free_port
from services.settings import Settings
from tests.faults.test_outage_logs import answers
from tests.processes import Running, running, wait_until

WORKERS = 3


def arguments(port: int) -> list[str]:
    return ["-m", "services.cli", "api", "--port", str(port), "--workers", str(WORKERS)]


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[tuple[Running, str]]:
    """The API in several processes, all of them ready."""
    port = any_free_port()
    with running(arguments(port), settings, log) as api:
        wait_until(lambda: len(serving_pids(api)) == WORKERS, "the processes")
        yield api, f"http://127.0.0.1:{port}"


def serving_pids(api: Running) -> set[int]:
    """The processes of this API that have begun to listen and still run."""
    children = Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children").read_text().split()
    # The interpreter's resource tracker is a child, too.
    served = {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    return served if api.said().count("listening on") >= WORKERS else set()


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_several_processes_serve_one_port_and_one_that_dies_is_replaced(
    settings: Settings, database_url: str, tmp_path: Path
) -> None:
    with serving(settings, tmp_path / "api.log") as (api, url):
        assert answers(url)
        with psycopg.connect(database_url, autocommit=True) as watch:
            (number,) = watch.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waybill-api-probe'"
                " AND datname = current_database()"
            ).fetchone() or (0,)
        # The probe of each process has a connection of its own from the start.
        assert number >= WORKERS
        before = serving_pids(api)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(serving_pids(api) - {victim}) == WORKERS, "a new process")
        assert all(answers(url) for _ in range(20))
        assert before - {victim} < serving_pids(api)
        pids = serving_pids(api)
        assert api.terminate(30) == 0
        wait_until(lambda: not any(map(exists, pids)), "their end", 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_processes(settings: Settings, tmp_path: Path, number: signal.Signals) -> None:
    with serving(settings, tmp_path / "api.log") as (api, _):
        pids = serving_pids(api)
        api.process.send_signal(number)
        assert api.process.wait(30) == 0
        assert not any(map(exists, pids))


def test_the_processes_stop_when_their_parent_is_killed(settings: Settings, tmp_path: Path) -> None:
    with serving(settings, tmp_path / "api.log") as (api, url):
        pids = serving_pids(api)
        api.kill()
        wait_until(lambda: not any(map(exists, pids)), "their end", 30)
        assert not answers(url)


def test_processes_that_cannot_start_are_not_started_for_ever(settings: Settings, tmp_path: Path) -> None:
    wrong = settings.model_copy(update={"database_schema": "nowhere"})
    with running(arguments(any_free_port()), wrong, tmp_path / "api.log") as api:
        assert api.process.wait(120) == 3
    assert "the database has no schema nowhere" in api.said()
    assert "Traceback" not in api.said()


def test_a_process_that_dies_while_it_is_checked_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies_when_loaded.py").write_text("import os, time; time.sleep(1); os._exit(9)")
    monkeypatch.syspath_prepend(tmp_path)
    process = Process(Config("dies_when_loaded:app"), [])
    process.start()
    began = monotonic()
    assert not process.is_alive(timeout=120)
    assert monotonic() - began < 60
    process.process.join()
    assert process.exitcode == 9


def test_a_port_in_use_is_reported_in_one_line(settings: Settings, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        running(arguments(taken.getsockname()[1]), settings, tmp_path / "api.log") as api,
    ):
        assert api.process.wait(30) == 3
    (line,) = api.said().splitlines()
    assert "cannot listen on 127.0.0.1 port" in line


def test_what_a_pool_does_is_logged_on_request_and_only_in_the_log(settings: Settings, tmp_path: Path) -> None:
    loud = settings.model_copy(update={"database_echo_pool": "debug"})
    port = any_free_port()
    script = (
        "import sys; sys.stdout = open(sys.argv.pop(), 'w', buffering=1); import runpy;"
        " runpy.run_module('services.cli', run_name='__main__', alter_sys=True)"
    )
    stdout = tmp_path / "stdout"
    with running(["-c", script, "api", "--port", str(port), str(stdout)], loud, tmp_path / "api.log") as api:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the API")
        assert api.terminate(30) in (0, -signal.SIGTERM)
    assert "checked out from pool" in api.said()
    assert "being returned to pool" in api.said()
    assert stdout.read_text() == ""
