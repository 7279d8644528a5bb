"""Clients that are slow, too many or not HTTP lose their own connection, and do not affect others."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from services.api.protocol import MAX_HEAD_BYTES, MAX_HEAD_FIELDS
from services.settings import Settings
from tests.conftest import Administrator, settings_for, temporary_database
from tests.faults.edge import HALF_A_HEAD, HEALTH, LONG, Edge, changed, is_open, read, rest, running_edge
from tests.processes import wait_until
from tests.servers import TestServers

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
REGISTER = b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SIGN_IN = b"username=a&password=b"
WAITING = (
    b"POST /v1/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(SIGN_IN), SIGN_IN)
)
"""A request that waits if the table of users is locked, and is refused then."""
NOTHING = b'{"email": "not an address"}'
REPLACE = REGISTER.replace(b"POST /v1/users", b"PUT /v1/products")
"""A request that may have a large body, and is refused without a token once that has been read."""


@pytest.fixture(scope="module")
def shared(
    administrator: Administrator, servers: TestServers, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, Path]]:
    """Settings for a database of this module, whose processes take a while to start, and a folder for their logs."""
    with temporary_database(administrator, servers, template_database) as url:
        settings = settings_for(url, servers.redis_url)
        # Tests lock what requests then wait for.
        yield changed(settings, **LONG), tmp_path_factory.mktemp("edge")


@pytest.fixture(scope="module")
def edge(shared: tuple[Settings, Path]) -> Iterator[Edge]:
    """An API with short time limits for clients."""
    settings, folder = shared
    quick = changed(settings, http_head_timeout=0.8, http_body_timeout=2.4, http_write_timeout=1.0)
    with running_edge(quick, folder / "quick.log") as running:
        yield running


@pytest.fixture(scope="module")
def patient(shared: tuple[Settings, Path]) -> Iterator[Edge]:
    """An API whose time limits no test reaches."""
    settings, folder = shared
    patient = changed(settings, http_head_timeout=600, http_body_timeout=600)
    with running_edge(patient, folder / "patient.log") as running:
        yield running


def fields(number: int) -> bytes:
    return b"".join(b"X-%d: 1\r\n" % count for count in range(number))


# Slow


def test_a_head_that_does_not_arrive_is_answered_408(edge: Edge) -> None:
    before = edge.refused("head_time")
    with edge.connect(HALF_A_HEAD) as client:
        reply = read(client)
        assert rest(client) == b""
    reply.assert_problem(408, "request_timeout")
    assert edge.refused("head_time") == before + 1


def test_a_head_that_trickles_is_not_waited_for_either(edge: Edge) -> None:
    with edge.connect(HALF_A_HEAD) as client:
        while is_open(client):
            client.sendall(b"x")
            time.sleep(0.05)
        read(client).assert_problem(408, "request_timeout")


def test_a_connection_on_which_nothing_arrives_is_closed_without_a_reply(edge: Edge) -> None:
    with edge.connect() as client:
        assert rest(client) == b""


@pytest.mark.parametrize("between", [b"\r\n", b"GET /he"])
def test_the_second_request_of_a_connection_gets_no_more_time_than_the_first(edge: Edge, between: bytes) -> None:
    with edge.connect(HEALTH) as client:
        assert read(client).status == 200
        client.sendall(between)
        if between.isspace():
            assert rest(client) == b""
        else:
            read(client).assert_problem(408, "request_timeout")


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_a_body_that_does_not_arrive_is_answered_408(edge: Edge, framing: bytes) -> None:
    ended = 'waybill_http_request_duration_seconds_count{method="POST",route="/v1/users",status="4xx"}'
    before, ended_before = edge.refused("body_time"), edge.metrics().get(ended, 0)
    with edge.connect(REGISTER + framing) as client:
        read(client).assert_problem(408, "request_timeout")
        assert rest(client) == b""
    assert edge.refused("body_time") == before + 1
    wait_until(lambda: edge.metrics()[ended] == ended_before + 1, "the handler to end")


def test_a_handler_that_did_not_wait_for_the_body_cannot_answer_once_the_client_was_told(
    edge: Edge, shared: tuple[Settings, Path]
) -> None:
    with psycopg.connect(shared[0].database_url) as blocker:
        # What /metrics reads, without a look at the body.
        blocker.execute("LOCK TABLE outbox")
        with edge.connect(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n") as client:
            read(client).assert_problem(408, "request_timeout")
            blocker.rollback()
            assert rest(client) == b""
    assert edge.ask().status == 200
    assert "Traceback" not in edge.process.said()


def test_a_body_that_trickles_is_not_waited_for_either(edge: Edge) -> None:
    with edge.connect(REGISTER + b"Content-Length: 1000\r\n\r\n") as client:
        while is_open(client):
            client.sendall(b" ")
            time.sleep(0.05)
        read(client).assert_problem(408, "request_timeout")


def test_a_body_sent_ahead_is_not_waited_for_and_takes_no_reply_from_the_request_before(
    edge: Edge, shared: tuple[Settings, Path]
) -> None:
    with psycopg.connect(shared[0].database_url) as blocker:
        blocker.execute("LOCK TABLE users")
        before = edge.refused("body_time")
        with edge.connect(WAITING + REGISTER + b"Content-Length: 100\r\n\r\n{") as client:
            wait_until(lambda: edge.refused("body_time") == before + 1, "the second request to be given up")
            assert is_open(client)
            blocker.rollback()
            assert read(client).status == 401
            assert rest(client) == b""


def test_a_body_sent_ahead_has_its_time_once_it_is_read(edge: Edge, shared: tuple[Settings, Path]) -> None:
    body = b'{"products": "' + b"x" * 900_000 + b'"}'
    with psycopg.connect(shared[0].database_url) as blocker, edge.connect() as client:
        blocker.execute("LOCK TABLE users")
        # Enough to make the server stop reading.
        client.sendall(WAITING + REPLACE + b"Content-Length: %d\r\n\r\n" % len(body) + body[:200_000])
        time.sleep(1.5)
        assert is_open(client)
        blocker.rollback()
        assert read_one(client) == 401
        client.sendall(body[200_000:])
        assert read_one(client) == 401


# Too large


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X-Large: " + b"x" * MAX_HEAD_BYTES,
        HEAD + b"X-Large: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEAD + b"X-Large: " + b"x" * 20_000_000,
        b"GET /" + b"x" * MAX_HEAD_BYTES,
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + fields(MAX_HEAD_FIELDS + 2),
        HEAD + fields(MAX_HEAD_FIELDS) + b"\r\n",
        REGISTER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + fields(MAX_HEAD_FIELDS + 1),
    ],
    ids=["open field", "field", "20 MB", "open path", "path", "open head of many fields", "many fields", "trailers"],
)
def test_a_head_that_is_too_large_is_answered_431(patient: Edge, sent: bytes) -> None:
    before = patient.refused("head_size")
    patient.ask(sent).assert_problem(431, "headers_too_large")
    assert patient.refused("head_size") == before + 1
    assert patient.ask().status == 200


def test_a_head_of_just_the_right_size_is_served(patient: Edge) -> None:
    assert patient.ask(HEAD + fields(MAX_HEAD_FIELDS - 1) + b"\r\n").status == 200
    large = b"x" * (MAX_HEAD_BYTES - 100)
    assert patient.ask(HEAD + b"X-Large: " + large + b"\r\n\r\n").status == 200


def test_a_trailer_without_an_end_is_cut_off(patient: Edge) -> None:
    start = REGISTER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Large: "
    patient.ask(start + b"x" * 20_000_000).assert_problem(413, "body_too_large")


def test_input_that_is_not_http_is_answered_and_cannot_fill_the_log(patient: Edge) -> None:
    for _ in range(50):
        patient.ask(b"\x16\x03\x01 this is TLS\r\n\r\n").assert_problem(400, "malformed_request")
    assert patient.refused("malformed") == 50
    assert patient.process.said().count("not HTTP") == 1


# As before


def test_requests_of_one_connection_are_answered_in_turn(patient: Edge) -> None:
    with patient.connect() as client:
        for size in (1, 10, 100):
            client.sendall(HEALTH * size)
            for _ in range(min(size, 60)):
                assert read_one(client) == 200
            if size == 100:
                # Too many requests sent ahead: those before are answered, and the connection ends.
                assert rest(client).count(b"200 OK") == 100 - 60 - 35
    assert patient.refused("pipeline") == 1


def read_one(client: socket.socket) -> int:
    """The status of one of several replies that may have arrived together."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the connection ended after {head!r}"
        head += byte
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while length:
        length -= len(client.recv(length))
    return int(head.split()[1])


def test_a_bad_request_behind_good_ones_takes_no_reply_from_them(patient: Edge) -> None:
    with patient.connect(HEALTH * 5 + b"GET / HTTP/1.1\r\nHost: x\r\n" + fields(MAX_HEAD_FIELDS + 2)) as client:
        said = rest(client)
    assert said.count(b"HTTP/1.1 200 OK") == 5
    assert said.count(b"HTTP/1.1") == 5


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_read_to_its_end(patient: Edge, chunked: bool) -> None:
    body = b'{"products": "' + b"x" * 900_000 + b'"}'
    with patient.connect(REPLACE) as client:
        if chunked:
            pieces = [body[start : start + 999] for start in range(0, len(body), 999)]
            sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            client.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + sent + b"0\r\nX-Trailer: 1\r\n\r\n")
        else:
            client.sendall(b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert read(client).status == 401
        client.sendall(HEALTH)
        assert read(client).status == 200


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_an_offer_to_upgrade_is_ignored(patient: Edge, method: bytes) -> None:
    body = b"" if method == b"GET" else NOTHING
    head = b" /v1/users HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    kind = b"HTTP2-Settings: AAMAAABk\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with patient.connect(method + head + kind + body) as client:
        assert read(client).status == (401 if method == b"GET" else 422)
        client.sendall(HEALTH)
        assert read(client).status == 200
    assert "Unsupported upgrade" not in patient.process.said()


# Too many


def test_half_sent_heads_do_not_keep_new_clients_out(settings: Settings, tmp_path: Path) -> None:
    few = changed(settings, http_head_timeout=600)
    with running_edge(few, tmp_path / "api.log", files=(128, 128)) as edge, ExitStack() as stack:
        # Fewer than the process has places for, then more than it has files.
        slow = [stack.enter_context(edge.connect(HALF_A_HEAD)) for _ in range(40)]
        wait_until(lambda: edge.ask().status == 200, "a new client to be served")
        slow += [stack.enter_context(edge.connect(HALF_A_HEAD)) for _ in range(100)]
        wait_until(lambda: edge.ask().status == 200 and not is_open(slow[0]), "the place of the oldest")
        for _ in range(20):
            assert edge.ask().status == 200
        # No more of them were closed than necessary.
        read(slow[0]).assert_problem(503, "overloaded")
        assert sum(is_open(client) for client in slow) > 10
        assert edge.refused("crowded_out") > 0


def test_bodies_that_do_not_arrive_do_not_keep_new_clients_out(settings: Settings, tmp_path: Path) -> None:
    few = changed(settings, http_head_timeout=600, http_body_timeout=600, http_max_connections=10)
    with running_edge(few, tmp_path / "api.log") as edge, ExitStack() as stack:
        head = REGISTER + b"Content-Length: 1000\r\n\r\n"
        slow = [stack.enter_context(edge.connect(head)) for _ in range(20)]
        wait_until(lambda: edge.ask().status == 200 and not is_open(slow[0]), "the place of the oldest")
        read(slow[0]).assert_problem(503, "overloaded")


def test_unfinished_requests_can_take_only_half_of_the_places(settings: Settings, tmp_path: Path) -> None:
    few = changed(settings, http_head_timeout=600, http_max_connections=40)
    with running_edge(few, tmp_path / "api.log") as edge, ExitStack() as stack:
        slow = [stack.enter_context(edge.connect(HALF_A_HEAD)) for _ in range(23)]
        wait_until(lambda: edge.ask().status == 200 and not is_open(slow[0]), "the place of the oldest")
        # Others were served throughout.
        assert edge.refused("capacity") == 0
        for _ in range(20):
            assert edge.ask().status == 200
        assert sum(is_open(client) for client in slow) >= 19


def test_one_connection_too_many_is_told_to_retry(settings: Settings, tmp_path: Path) -> None:
    few = changed(settings, http_max_connections=8, http_keep_alive_timeout=600)
    with running_edge(few, tmp_path / "api.log") as edge, ExitStack() as stack:
        connected: list[socket.socket] = []
        while len(connected) < 8:
            client = stack.enter_context(edge.connect(HEALTH))
            # The connections of the start may not all have ended.
            if read(client).status == 200:
                connected.append(client)
        for _ in range(100):
            reply = edge.ask()
            reply.assert_problem(503, "overloaded")
            assert reply.headers["retry-after"] == "1"
        # Clients that have a place are still served.
        for client in connected:
            client.sendall(HEALTH)
            assert read(client).status == 200
        connected[0].close()
        wait_until(lambda: edge.ask().status == 200, "the place that became free")
        assert edge.refused("capacity") >= 100
        assert edge.metrics()["waybill_http_connections_open"] == 8
        assert 1 <= edge.process.said().count("reached its limit of open connections") <= 3


def test_the_limit_on_files_is_raised_as_far_as_possible(settings: Settings, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with running_edge(settings, tmp_path / "api.log", files=(100, 900)) as edge:
        assert resource.prlimit(edge.pid, resource.RLIMIT_NOFILE) == (900, 900)
    asked = changed(settings, http_max_connections=5000)
    with running_edge(asked, tmp_path / "api.log", files=(100, 900)) as edge:
        assert "900 open files leaves room for 821 connections" in edge.process.said()
