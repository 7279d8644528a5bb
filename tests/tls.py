"""Servers that speak TLS, and certificates for them: Debian's builds, since the embedded ones have no TLS."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.exceptions import RedisError

from services.local.embedded import EmbeddedPostgres, EmbeddedRedis
from services.local.embedded.ports import LOOPBACK
from services.local.embedded.postgres import PostgresBinaries, inspect_binaries

_HOW = (
    "a build of PostgreSQL with TLS is needed: install the package `postgresql`, or set WAYBILL_TEST_POSTGRES_TLS to "
    "the folder of its programs"
)


def postgres_with_tls() -> PostgresBinaries:
    """Programs that were built with TLS. As root, they are installed if missing; otherwise see `missing`."""
    found = _built_with_tls()
    if found is None:
        install("postgresql")
        found = _built_with_tls()
    return found or missing(_HOW)


def install(package: str) -> None:
    """Install a package of Debian, as root and if there is apt."""
    if os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        quiet = {"check": False, "capture_output": True, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run([apt, "update", "-qq"], **quiet)  # type: ignore[call-overload]
        subprocess.run([apt, "install", "-y", "-qq", package], **quiet)  # type: ignore[call-overload]


def missing(how: str) -> NoReturn:
    """Skip the test, and say how not to; in CI it fails."""
    if os.environ.get("WAYBILL_TEST_NEEDS_ALL") or os.environ.get("CI"):
        pytest.fail(how)
    pytest.skip(how)


def _built_with_tls() -> PostgresBinaries | None:
    given = os.environ.get("WAYBILL_TEST_POSTGRES_TLS")
    folders = [Path(given)] if given else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        found = inspect_binaries(folder)
        if found is not None and found.major >= 15 and _has_tls(folder / "postgres"):
            return found
    return None


def _has_tls(program: Path) -> bool:
    """Whether the server's program uses OpenSSL."""
    return b"SSL_CTX_new" in program.read_bytes()


@dataclass(frozen=True, slots=True)
class Pair:
    """Files with a certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that signs for servers and clients."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.crt"
        signed = self._builder(self._name, self._key, timedelta(days=1)).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._write(self.certificate, signed)

    def sign(self, name: str, *, hosts: tuple[str, ...] = (), lasts: timedelta = timedelta(days=1)) -> Pair:
        """A certificate for `name`, and for these host names or addresses. A negative duration: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, lasts)
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        self._write(pair.certificate, builder)
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + lasts)
        )

    def _write(self, path: Path, builder: x509.CertificateBuilder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class PostgresWithTls(EmbeddedPostgres):
    """A server with this certificate, which accepts nothing but TLS.

    The users in `certified` need a certificate signed by `clients`, and no password.
    """

    def __init__(self, data: Path, server: Pair, clients: Authority, certified: tuple[str, ...] = ()) -> None:
        files = {
            "ssl": "on",
            "ssl_cert_file": "server.crt",
            "ssl_key_file": "server.key",
            "ssl_ca_file": "clients.crt",
            "max_connections": "100",
        }
        super().__init__(data, settings=files, durable=False, binaries=postgres_with_tls())
        self._files = {
            "server.crt": server.certificate,
            "server.key": server.key,
            "clients.crt": clients.certificate,
        }
        self._certified = certified

    def _prepare(self) -> None:
        super()._prepare()
        owner = self.cluster.stat()
        for name, file in self._files.items():
            copy = self.cluster / name
            copy.unlink(missing_ok=True)
            copy.touch(mode=0o600)
            copy.write_bytes(file.read_bytes())
            os.chown(copy, owner.st_uid, owner.st_gid)
        rules = [f"hostssl all {user} {LOOPBACK}/32 cert" for user in self._certified]
        rules.append(f"hostssl all all {LOOPBACK}/32 scram-sha-256")
        (self.cluster / "pg_hba.conf").write_text("\n".join(rules) + "\n")


class RedisWithTls(EmbeddedRedis):
    """A Redis server with this certificate, which accepts nothing but TLS."""

    def __init__(self, data: Path, server: Pair) -> None:
        super().__init__(data, durable=False, binary=redis_with_tls())
        self._pair = server

    def url(self) -> str:
        return super().url().replace("redis://", "rediss://")

    def _command(self) -> Sequence[str | Path]:
        command = super()._command()
        configuration = self.data / "server.conf"
        with configuration.open("a") as lines:
            lines.write(f"port 0\ntls-port {self.port}\ntls-auth-clients no\n")
            lines.write(f"tls-cert-file {self._pair.certificate}\ntls-key-file {self._pair.key}\n")
            # Redis wants one, although no client needs a certificate.
            lines.write(f"tls-ca-cert-file {self._pair.certificate}\n")
        return command

    def _is_ready(self) -> bool:
        try:
            with Redis.from_url(self.url(), ssl_cert_reqs="none", socket_timeout=0.5) as client:
                return bool(client.ping())
        except RedisError:
            return False


def redis_with_tls() -> Path:
    """The program of a Redis that was built with TLS. As root, it is installed if missing; otherwise see `missing`."""
    for may_install in (True, False):
        given = os.environ.get("WAYBILL_TEST_REDIS_TLS") or shutil.which("redis-server")
        if given is not None and _has_tls(Path(given)):
            return Path(given)
        if may_install:
            install("redis-server")
    missing(
        "a build of Redis with TLS is needed: install the package `redis-server`, or set WAYBILL_TEST_REDIS_TLS to the "
        "path of its program"
    )
