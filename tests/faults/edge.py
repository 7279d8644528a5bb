"""Clients that send HTTP byte by byte, and an API process with as few files as a test wants."""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2

from services.local.embedded.ports import LOOPBACK, any_free_port
from services.settings import Settings
from tests.processes import Running, running, wait_until

_WITH_FILES = """
import os, resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "

LONG = dict.fromkeys(("database_lock_timeout", "database_statement_timeout", "database_transaction_timeout"), 60.0)
"""Settings of an API whose requests wait for locks that a test holds."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def assert_problem(self, status: int, code: str) -> None:
        """Assert that it is a complete problem+json, after which the connection is closed."""
        assert self.status == status, self
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["connection"] == "close"
        problem = json.loads(self.body)
        assert problem.keys() == {"type", "title", "status", "code", "detail", "request_id", "errors"}
        assert (problem["status"], problem["code"]) == (status, code)
        assert problem["detail"]
        assert problem["request_id"] == self.headers["x-request-id"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A running API."""

    process: Running
    port: int

    @property
    def pid(self) -> int:
        return self.process.process.pid

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def connect(self, sent: bytes = b"", receive_buffer: int = 0) -> socket.socket:
        """A new connection on which `sent` has been sent."""
        client = socket.socket()
        client.settimeout(30)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            client.connect((LOOPBACK, self.port))
        except OSError:
            client.close()
            raise
        if sent:
            # It may have been refused already; the reply can still be read.
            with suppress(ConnectionError):
                client.sendall(sent)
        return client

    def ask(self, sent: bytes = HEALTH) -> Reply:
        """The reply to what is sent on a new connection."""
        with self.connect(sent) as client:
            return read(client)

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels, as printed."""
        text = httpx2.get(f"{self.url}/metrics", trust_env=False, timeout=30).text
        return {name: float(value) for name, value in re.findall(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}

    def refused(self, reason: str) -> float:
        return self.metrics()[f'waybill_http_connections_refused_total{{reason="{reason}"}}']

    def descriptors(self) -> list[int]:
        """The descriptors that the process has open."""
        return sorted(int(number) for number in os.listdir(f"/proc/{self.pid}/fd"))


def read(client: socket.socket) -> Reply:
    """The next reply on a connection. Raises `ConnectionError` if it was closed without one."""
    response = HTTPResponse(client)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


def rest(client: socket.socket) -> bytes:
    """Read everything until the connection is closed in any way."""
    said = b""
    with suppress(ConnectionError):
        while piece := client.recv(65_536):
            said += piece
    return said


def is_open(client: socket.socket) -> bool:
    """Whether the server has neither sent anything nor closed the connection."""
    client.setblocking(False)
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        client.settimeout(30)
    return False


@contextmanager
def running_edge(settings: Settings, log: Path, *, files: tuple[int, int] | None = None) -> Iterator[Edge]:
    """A running `waybill api`; `files` are its soft and hard limits on open files."""
    port = any_free_port()
    command = ["-m", "services.cli", "api", "--port", str(port)]
    if files is not None:
        command = ["-c", _WITH_FILES, *map(str, files), *command]
    with running(command, settings, log) as process:
        edge = Edge(process, port)
        wait_until(lambda: answers(edge), "the API to answer")
        # Only the one that asks is left.
        wait_until(lambda: edge.metrics()["waybill_http_connections_open"] == 1, "the first connections to end")
        yield edge


def answers(edge: Edge) -> bool:
    assert edge.process.lives, edge.process.said()
    try:
        return edge.ask().status == 200
    except OSError:
        return False


def changed(settings: Settings, **update: Any) -> Settings:
    return settings.model_copy(update=update)
