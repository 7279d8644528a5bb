"""Out of files, told to stop, or writing to a client that does not read: reported, counted, and over when it ends."""

import asyncio
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
import uvicorn

from benchmarks.sessions import session_of
from services.api.protocol import LimitedProtocol
from services.api.server import Server
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings
from services.users.models import User
from tests.factories import make_user
from tests.faults.edge import HEALTH, LONG, Edge, changed, read, rest, running_edge
from tests.processes import running, running_worker, wait_until

_AS_NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
STATEMENT = "/v1/accounts/me/statement.csv"


@pytest.fixture
def edge(settings: Settings, tmp_path: Path) -> Iterator[Edge]:
    with running_edge(changed(settings, http_keep_alive_timeout=600, **LONG), tmp_path / "api.log") as started:
        yield started


def token(settings: Settings, user: User) -> str:
    return f"Bearer {Tokens.from_settings(settings).make(session_of(user.id))}"


def get(path: str, settings: Settings, user: User) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token(settings, user)}\r\n\r\n".encode()


async def with_a_long_statement(edge: Edge, settings: Settings, database: Database) -> User:
    """A user whose statement is far longer than what the kernel buffers for a client that does not read."""
    user, other = await make_user(database, credits="10000"), await make_user(database)
    transfers = [{"to_user_id": other.id, "amount": "1", "note": "x" * 200} for _ in range(500)]
    async with httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=60) as client:
        for _ in range(8):
            headers = {"Authorization": token(settings, user), "Idempotency-Key": str(uuid4())}
            body = {"mode": "atomic", "transfers": transfers}
            assert (await client.post("/v1/transfers/batch", headers=headers, json=body)).status_code == 200
    return user


# A client that does not read


@pytest.mark.parametrize("followed_by", [b"", HEALTH], ids=["alone", "with another request behind"])
async def test_a_client_that_does_not_read_is_dropped_and_its_request_ends(
    settings: Settings, database: Database, tmp_path: Path, followed_by: bytes
) -> None:
    with running_edge(changed(settings, http_write_timeout=1.0), tmp_path / "api.log") as edge:
        user = await with_a_long_statement(edge, settings, database)
        ended = f'waybill_http_request_duration_seconds_count{{method="GET",route="{STATEMENT}",status="2xx"}}'
        with edge.connect(get(STATEMENT, settings, user) + followed_by, receive_buffer=4096) as client:
            wait_until(lambda: edge.metrics().get(ended) == 1, "the request to end")
            assert edge.refused("reader") == 1
            assert edge.metrics()["waybill_http_connections_open"] == 1
            assert not rest(client).endswith(b"0\r\n\r\n"), "what is missing does not look complete"
        assert "Traceback" not in edge.process.said()


async def test_a_reply_left_unread_after_its_request_finished_does_not_hold_the_connection(settings: Settings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"50000"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 50_000})

    # The kernel accepts little, and the rest is too little to make the handler wait: only the connection remains.
    listener = socket.create_server((LOOPBACK, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    config = uvicorn.Config(app, http=LimitedProtocol, lifespan="off", log_config=None)
    server = Server(config, changed(settings, http_write_timeout=0.5))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        serving = asyncio.create_task(server.serve([listener]))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, HEALTH)
        state = server.server_state
        await asyncio.to_thread(wait_until, lambda: state.total_requests == 1, "the request to end")
        assert state.connections
        await asyncio.to_thread(wait_until, lambda: not state.connections, "the connection to end")
        server.should_exit = True
        await serving


async def test_a_client_that_reads_slowly_gets_everything(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    with running_edge(changed(settings, http_write_timeout=2.0), tmp_path / "api.log") as edge:
        user = await with_a_long_statement(edge, settings, database)
        with edge.connect(get(STATEMENT, settings, user), receive_buffer=65_536) as client:
            said = b""
            while not said.endswith(b"0\r\n\r\n"):
                piece = client.recv(65_536)
                assert piece, f"dropped after {len(said)} bytes"
                said += piece
                await asyncio.sleep(0.1)
        assert said.count(b"\r\n") > 4000
        assert edge.refused("reader") == 0


# Out of files


def leave_no_file(edge: Edge, stack: ExitStack) -> tuple[int, int]:
    """Fill the gaps in the table of descriptors, and limit it to those in use. Returns the limits as they were."""
    while (used := edge.descriptors()) != list(range(len(used))):
        stack.enter_context(edge.connect(HEALTH))
        wait_until(lambda count=len(used): len(edge.descriptors()) > count, "the connection")  # type: ignore[misc]
    before = resource.prlimit(edge.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (len(used), before[1]))
    return before


def test_connections_are_refused_until_file_descriptors_are_free_again(edge: Edge) -> None:
    with ExitStack() as stack:
        before = leave_no_file(edge, stack)
        refused = 0
        while refused < 3:
            reply = read(stack.enter_context(edge.connect(HEALTH)))
            # Use up a file that has become free in the meantime.
            if reply.status != 200:
                reply.assert_problem(503, "overloaded")
                assert reply.headers["retry-after"] == "1"
                refused += 1
        assert "cannot accept connections: [Errno 24]" in edge.process.said()
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: edge.ask().status == 200, "a connection to be served again")
        assert edge.metrics()["waybill_http_accept_errors_total"] >= 1


def test_without_even_a_spare_file_waiting_clients_are_served_later(edge: Edge) -> None:
    before = resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (3, 900))
    with edge.connect(HEALTH) as client:
        wait_until(lambda: "cannot accept connections" in edge.process.said(), "a line in the log")
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (900, 900))
        assert read(client).status == 200
    assert before[0] > 3


async def test_a_request_without_a_descriptor_for_its_database_connection_is_told_to_retry(
    edge: Edge, settings: Settings, database: Database, database_url: str
) -> None:
    user = await make_user(database)
    wanted = get("/v1/accounts/me", settings, user)
    with edge.connect(wanted) as client:
        assert read(client).status == 200
        with psycopg.connect(database_url, autocommit=True) as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'waybill-api'"
            )
        before = resource.prlimit(edge.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        client.sendall(wanted)
        reply = read(client)
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, before)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert b'"overloaded"' in reply.body
        client.sendall(wanted)
        assert read(client).status == 200
    assert edge.metrics()["waybill_http_out_of_descriptors_total"] == 1
    assert "out of file descriptors" in edge.process.said()


# Told to stop


async def transfer_that_waits(edge: Edge, settings: Settings, payer: User, payee: User) -> httpx2.Response:
    headers = {"Authorization": token(settings, payer), "Idempotency-Key": "k"}
    body = {"to_user_id": payee.id, "amount": "1.00"}
    async with httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=60) as client:
        return await client.post("/v1/transfers", headers=headers, json=body)


async def test_closing_the_terminal_lets_the_api_finish_its_requests(
    edge: Edge, settings: Settings, database: Database, database_url: str
) -> None:
    payer, payee = await make_user(database, credits="10"), await make_user(database)
    waiting = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'waybill-api' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(database_url) as blocker, psycopg.connect(database_url, autocommit=True) as watch:
        blocker.execute("SELECT 1 FROM accounts WHERE user_id = %s FOR UPDATE", [payer.id])
        sending = asyncio.create_task(transfer_that_waits(edge, settings, payer, payee))
        await asyncio.to_thread(wait_until, lambda: bool(watch.execute(waiting).fetchone()), "the transfer to wait")
        edge.process.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(wait_until, lambda: "Shutting down" in edge.process.said(), "the API to stop")
        blocker.rollback()
        reply = await sending
    assert reply.status_code == 201
    assert edge.process.process.wait(30) == -signal.SIGHUP
    assert "Finished server process" in edge.process.said()


def test_closing_the_terminal_stops_a_worker_as_sigterm_does(settings: Settings, tmp_path: Path) -> None:
    with running_worker(settings, tmp_path / "worker.log") as worker:
        # The job runs once a minute.
        wait_until(lambda: "backlog" in worker.said(), "the worker's first job", seconds=120)
        worker.process.send_signal(signal.SIGHUP)
        assert worker.process.wait(30) == 0, worker.said()


@pytest.mark.parametrize("arguments", [["-m", "services.cli", "api", "--port", "0"], ["-m", "worker"]])
def test_a_process_started_to_outlive_its_terminal_does(
    settings: Settings, database_url: str, tmp_path: Path, arguments: list[str]
) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv)"
    )
    command: list[Any] = ["-c", ignoring.replace("sys.argv)", "[sys.executable, *sys.argv[1:]])"), *arguments]
    with running(command, settings, tmp_path / "process.log") as process:
        with psycopg.connect(database_url, autocommit=True) as watch:
            works = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'waybill-%'"
            wait_until(lambda: bool(watch.execute(works).fetchone()), "the process to work")
        process.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(2)
        assert process.terminate(30) in (0, -signal.SIGTERM)
