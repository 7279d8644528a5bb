"""`waybill up` on a disk that is full, or that lost recent writes: it says so, keeps running and recovers."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from services.local.embedded.ports import next_free_port
from tests.started import START_SECONDS, Up, all_of, answers, lives, order_is_confirmed, up, wait_for

ROUNDS = 3.0
"""Seconds in which the supervisor makes several rounds."""
NO_ROOM = "cannot report new processes to the other commands; retrying"


def fill(folder: Path) -> None:
    """Fill the disk completely."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        size = 1_000_000
        while size:
            try:
                filler.write(b"\0" * size)
            except OSError:
                size //= 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs root, and permission to mount: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_full_disk_ends_nothing_and_everything_recovers_when_there_is_space(small_disk: Path) -> None:
    with up(small_disk) as running:
        before = running.facts()
        fill(small_disk)
        os.kill(before.pids.workers[0], signal.SIGKILL)
        # There is no space for its messages, either: a new child process shows that it keeps running.
        wait_for(lambda: bool(set(children(running.process.pid)) - set(all_of(before.pids))), "a new process")
        time.sleep(ROUNDS)
        assert running.facts() == before

        fill(small_disk)
        for pid in (before.pids.redis, before.pids.postgres):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        fill(small_disk)
        time.sleep(ROUNDS)
        assert running.process.poll() is None

        (small_disk / "filler").unlink()
        with httpx2.Client(base_url=before.api_url, trust_env=False) as client:
            wait_for(lambda: answers(client), "the API to be ready again", START_SECONDS)
        # Processes that were started in the meantime are reported.
        wait_for(
            lambda: set(all_of(running.facts().pids)) == set(children(running.process.pid)), "the facts", START_SECONDS
        )
        assert order_is_confirmed(running.facts())
        assert running.interrupt() == 0
        assert "Traceback" not in running.said()


def children(pid: int) -> list[int]:
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [child for child in map(int, shown.split()) if lives(child)]


def test_facts_that_cannot_be_written_are_written_later(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        before = running.facts()
        # Works everywhere, even for root: a file cannot be written if a folder is in the way.
        obstacle = running.data / "waybill.json.new"
        obstacle.mkdir()
        os.kill(before.pids.workers[0], signal.SIGKILL)
        wait_for(lambda: NO_ROOM in running.said(), "the warning")
        assert running.facts() == before
        obstacle.rmdir()
        wait_for(lambda: running.facts().pids.workers != before.pids.workers, "the facts")
        assert order_is_confirmed(running.facts())
        assert running.said().count(NO_ROOM) == 1


def test_files_that_a_power_cut_left_empty_or_garbled_are_recreated(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        before = first.facts()
        assert order_is_confirmed(before)
        assert first.interrupt() == 0
    data = first.data
    for name in ("secret_key", "waybill.json", "postgres/password", "redis/password", "waybill.marker", "lock"):
        (data / name).write_text("")
    (log,) = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"\0" * log.stat().st_size)

    with up(tmp_path) as second:
        # With a password that was set again, and a token that the new key signs.
        assert order_is_confirmed(second.facts())
        assert second.facts().users != before.users
        assert second.interrupt() == 0
    said = second.said()
    assert "secret_key was damaged and has been replaced: everyone has to sign in again" in said
    assert "PostgreSQL did not accept the password" in said
    assert "Redis could not read its data. It was moved to" in said
    assert "waybill.json is damaged and will be replaced; demo users get new passwords" in said
    assert "Traceback" not in said


HASTY = """
import sys
from services.cli import main
from services.local import up
from services.local.embedded import server

looked = set()
look = up.next_free_port
taken = {{preferred: int(port) for preferred, port in {taken}}}

def look_before_somebody_else(preferred, used=()):
    if preferred in taken and preferred not in looked:
        looked.add(preferred)
        return taken[preferred]
    return look(preferred, used)

up.next_free_port = look_before_somebody_else
server.is_free = lambda port: True
main.app()
"""


def test_if_another_program_takes_a_port_after_the_check_the_next_one_is_used(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = next_free_port(8000)
        others = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        taken = [other.getsockname()[1] for other in others]
        script = HASTY.format(taken=list(zip((5432, 6379, port), taken, strict=True)))
        with up(tmp_path, "--port", str(port), program=("-c", script)) as running:
            for number in taken:
                assert f"listens on {number} instead" in running.said()
            assert not any(f":{number}/" in url for number in taken for url in addresses(running))
            assert order_is_confirmed(running.facts())


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens is read from /proc")
def test_another_service_that_answers_on_the_port_is_not_taken_for_the_api(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with up(folders[0]) as first:
        other = httpx2.URL(first.facts().api_url).port
        port = next_free_port(8000, [other or 0])
        script = HASTY.format(taken=[(port, other)])
        with up(folders[1], "--port", str(port), program=("-c", script)) as second:
            assert second.facts().api_url != first.facts().api_url
            assert order_is_confirmed(second.facts())


def addresses(running: Up) -> list[str]:
    facts = running.facts()
    return [facts.database_url, facts.redis_url, f"{facts.api_url}/"]
