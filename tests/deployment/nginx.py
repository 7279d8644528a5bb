"""A real nginx with deploy/nginx.conf, and an upstream that says what reached it."""

import json
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.local.embedded import child
from services.local.embedded.ports import LOOPBACK, any_free_port
from tests.installed import installed
from tests.processes import ROOT, wait_until

CONFIGURATION = ROOT / "deploy" / "nginx.conf"
NAME = "api.example.com"

_MAIN = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/waybill.conf;
}}
"""


class Upstream(ThreadingHTTPServer):
    """Answers with the method, the path, the fields and the length of the body of each request, as JSON.

    `/die` closes the connection instead. An export sends its second half when `go_on` is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Echo)
        self.seen: list[str] = []
        self.go_on = threading.Event()


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def _answer(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        size = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path == "/die":
            self.close_connection = True
            return
        if self.path.endswith(".csv"):
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"first")
            assert self.server.go_on.wait(30)
            self.wfile.write(b"later")
            return
        fields = [(name.lower(), value) for name, value in self.headers.items()]
        reply = json.dumps({"path": self.path, "fields": fields, "size": size}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = _answer  # noqa: N815 (names that the base class calls)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class Proxy:
    """The running nginx. `client` speaks TLS to it and trusts its certificate."""

    def __init__(self, folder: Path, tls_port: int, plain_port: int, upstream: Upstream) -> None:
        self.upstream = upstream
        self.plain_url = f"http://{LOOPBACK}:{plain_port}"
        self.log = folder / "waybill.log"
        self.tls_port = tls_port
        self.trusting = ssl.create_default_context(cafile=str(folder / "tls" / "api.crt"))
        self.client = httpx2.Client(
            base_url=f"https://{LOOPBACK}:{tls_port}", verify=self.trusting, headers={"Host": NAME}, timeout=20
        )

    def send(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return self.client.request(method, path, extensions={"sni_hostname": NAME}, **more)


@contextmanager
def upstream_server() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def write_certificate(folder: Path) -> None:
    """Make `api.crt` and `api.key`: signed by itself, for the name in the configuration."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "api.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "api.key").write_bytes(key.private_bytes(*private))


def write_configuration(folder: Path, tls_port: int, plain_port: int, upstream_port: int) -> Path:
    """The file of the repository, with its addresses and paths replaced as the page says; returns the main file."""
    text = CONFIGURATION.read_text()
    for old, new in {
        "listen 443 ": f"listen {LOOPBACK}:{tls_port} ",
        "listen 80 ": f"listen {LOOPBACK}:{plain_port} ",
        "/etc/waybill/tls/": f"{folder}/tls/",
        "/var/log/nginx/": f"{folder}/",
        "server 127.0.0.1:8001 ": f"server {LOOPBACK}:{upstream_port} ",
        # The same server under another address: a second process of the API.
        "server 127.0.0.1:8002 ": f"server localhost:{upstream_port} ",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "waybill.conf").write_text(text)
    main = folder / "nginx.conf"
    # Its own files are in a folder that only we may enter.
    main.write_text(_MAIN.format(folder=folder, user="user root;" if os.geteuid() == 0 else ""))
    return main


@contextmanager
def running_nginx(folder: Path, upstream: Upstream) -> Iterator[Proxy]:
    write_certificate(folder / "tls")
    tls_port, plain_port = any_free_port(), any_free_port()
    main = write_configuration(folder, tls_port, plain_port, upstream.server_address[1])
    process = child.spawn(
        [installed("nginx", "nginx-light"), "-e", folder / "error.log", "-c", main],
        cwd=folder,
        log=folder / "output.log",
        death_signal=signal.SIGTERM,
        environment={"PATH": "/usr/sbin:/usr/bin:/bin"},
    )
    proxy = Proxy(folder, tls_port, plain_port, upstream)
    try:
        wait_until(lambda: _answers(proxy, process, folder), "nginx to answer", 20)
        upstream.seen.clear()
        yield proxy
    finally:
        proxy.client.close()
        child.stop(process, (signal.SIGQUIT, 5.0))


def _answers(proxy: Proxy, process: Any, folder: Path) -> bool:
    assert process.poll() is None, (folder / "error.log").read_text() + (folder / "output.log").read_text()
    try:
        return proxy.send("GET", "/readyz").status_code == 200
    except httpx2.TransportError:
        return False
