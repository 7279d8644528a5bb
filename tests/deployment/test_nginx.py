"""deploy/nginx.conf: nginx accepts it, and does what docs/reference/processes.md demands of a proxy."""

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from services.settings import Settings
from tests.deployment.nginx import CONFIGURATION, NAME, Proxy, running_nginx, upstream_server, write_certificate
from tests.deployment.nginx import write_configuration as write
from tests.installed import installed
from tests.processes import wait_until


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with upstream_server() as upstream, running_nginx(tmp_path_factory.mktemp("nginx"), upstream) as running:
        yield running


def setting(name: str) -> str:
    """The value of a directive that the file has once."""
    (value,) = re.findall(rf"^ *{name} (.+);$", CONFIGURATION.read_text(), re.MULTILINE)
    return str(value)


def problem(reply: httpx2.Response) -> tuple[int, str]:
    """The status and the code of a problem, whose own status must agree."""
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    body = reply.json()
    assert body["status"] == reply.status_code
    assert body["type"] == "about:blank"
    assert body["detail"]
    return reply.status_code, body["code"]


def raw(proxy: Proxy, sent: bytes, name: str = NAME) -> bytes:
    """The reply to these bytes over TLS."""
    with (
        socket.create_connection(("127.0.0.1", proxy.tls_port), 20) as plain,
        proxy.trusting.wrap_socket(plain, server_hostname=name) as connection,
    ):
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_nginx_accepts_the_file(tmp_path: Path) -> None:
    write_certificate(tmp_path / "tls")
    command = [installed("nginx", "nginx-light"), "-e", str(tmp_path / "error.log"), "-t", "-c"]
    checked = subprocess.run([*command, write(tmp_path, 1443, 1080, 1081)], capture_output=True, text=True, check=False)
    assert (checked.returncode, "warn" in checked.stderr) == (0, False), checked.stderr


def test_its_limits_fit_those_of_the_api() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert setting("client_max_body_size") == "1m"
    assert defaults["max_body_bytes"] == 1024 * 1024
    assert int(setting("keepalive_timeout").removesuffix("s")) < defaults["http_keep_alive_timeout"]
    assert setting("client_header_timeout") == f"{defaults['http_head_timeout']:g}s"
    assert setting("client_body_timeout") == f"{defaults['http_body_timeout']:g}s"
    assert int(setting("proxy_read_timeout").removesuffix("s")) >= 60


def test_clients_cannot_set_the_address_that_the_api_sees(proxy: Proxy) -> None:
    false = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "http",
        "Forwarded": "for=1.2.3.4",
        "X-Forwarded-Host": "x",
    }
    fields = proxy.send("GET", "/v1/products", headers=false).json()["fields"]
    forwarded = [field for field in fields if "forwarded" in field[0]]
    assert sorted(forwarded) == [["x-forwarded-for", "127.0.0.1"], ["x-forwarded-proto", "https"]]
    assert [value for name, value in fields if name == "host"] == [NAME]
    exported = proxy.upstream
    exported.go_on.set()
    assert proxy.send("GET", "/v1/orders.csv", headers=false).status_code == 200


def test_what_the_api_needs_arrives_unchanged(proxy: Proxy) -> None:
    sent = {
        "authorization": "Bearer abc",
        "idempotency-key": "key 1",
        "if-match": '"3"',
        "if-none-match": '"4"',
        "waybill-position": "1:0/3",
        "x-request-id": "01a2212d-97fd-7226-93be-f25b81561f11",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    path = "/v1/products?q=%C3%A4%20b&cursor=a%2Fb"
    seen = proxy.send("POST", path, headers=sent, content=b"x" * 100_000).json()
    assert (seen["path"], seen["size"]) == (path, 100_000)
    assert sent.items() <= dict(seen["fields"]).items()


def test_large_requests_are_refused_as_the_api_refuses_them(proxy: Proxy) -> None:
    assert problem(proxy.send("POST", "/v1/orders", content=b"x" * (1024 * 1024 + 1))) == (413, "body_too_large")
    assert problem(proxy.send("GET", "/v1/orders", headers={"X-Long": "x" * 20_000})) == (431, "headers_too_large")
    assert problem(proxy.send("GET", "/v1/orders?q=" + "x" * 20_000)) == (431, "headers_too_large")
    many = {f"X-Long-{number}": "x" * 6_000 for number in range(4)}
    assert problem(proxy.send("GET", "/v1/orders", headers=many)) == (431, "headers_too_large")
    assert proxy.send("POST", "/v1/orders", content=b"x" * 1024 * 1024).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/products HTTP/1.1\r\nHost: api.example.com\r\nHost: other.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/products HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    ],
)
def test_requests_that_two_servers_may_read_differently_do_not_arrive(proxy: Proxy, head: str) -> None:
    proxy.upstream.seen.clear()
    assert b"malformed_request" in raw(proxy, head.encode())
    assert proxy.upstream.seen == []


@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/%6detrics", "/v1/../metrics", "/internal/scaling", "/internal/a.csv"]
)
def test_metrics_and_numbers_for_autoscalers_are_not_shown(proxy: Proxy, path: str) -> None:
    proxy.upstream.seen.clear()
    reply = raw(proxy, f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in reply.splitlines()[0]
    assert b'"code":"not_found"' in reply
    assert proxy.upstream.seen == []


def test_other_names_and_plain_http_are_refused(proxy: Proxy) -> None:
    assert httpx2.get(proxy.plain_url + "/v1/products").status_code == 403
    assert b" 421 " in raw(proxy, b"GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n").splitlines()[0]
    with pytest.raises(ssl.SSLError):
        raw(proxy, b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", name="other.example")


def test_a_post_that_may_have_had_its_effect_is_not_sent_again(proxy: Proxy) -> None:
    proxy.upstream.seen.clear()
    assert problem(reply := proxy.send("POST", "/die", content=b"{}")) == (503, "outcome_unknown")
    assert int(reply.headers["retry-after"]) > 0
    assert proxy.upstream.seen == ["POST /die"]
    assert problem(proxy.send("GET", "/die")) == (503, "outcome_unknown")
    assert proxy.upstream.seen[1:] == ["GET /die"] * 2


def test_an_export_reaches_the_client_while_the_api_still_writes_it(proxy: Proxy) -> None:
    proxy.upstream.go_on.clear()
    with proxy.client.stream("GET", "/v1/orders.csv", extensions={"sni_hostname": NAME}) as reply:
        pieces = reply.iter_raw()
        assert next(pieces) == b"first"
        proxy.upstream.go_on.set()
        assert b"".join(pieces) == b"later"


def test_floods_of_one_address_are_slowed_down_sign_ins_first(proxy: Proxy) -> None:
    replies = [proxy.send("POST", "/v1/token", content=b"x") for _ in range(40)]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(replies) - len(refused) >= 20
    assert {problem(reply) for reply in refused} == {(429, "rate_limited")}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    # What costs nothing special goes on.
    assert {proxy.send("GET", "/v1/products").status_code for _ in range(40)} == {200}


def test_the_log_has_the_request_but_not_its_query(proxy: Proxy) -> None:
    proxy.send("GET", "/v1/users?q=ada%40example.com")
    proxy.send("GET", "/v1/users/1")
    # nginx writes its line after the reply.
    wait_until(lambda: '"GET /v1/users/1" 200' in proxy.log.read_text(), "the line of the second request")
    text = proxy.log.read_text()
    assert '"GET /v1/users" 200' in text
    assert "ada" not in text
