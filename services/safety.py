"""What production refuses: rules that find faults in the settings (docs/reference/production-checks.md)."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote

from pydantic import SecretStr
from redis.asyncio.connection import SSLConnection, parse_url
from sqlalchemy.engine import URL, make_url

DEVELOPMENT_SECRET = "waybill-development-secret-do-not-deploy"  # noqa: S105 (everyone may know it)
"""Signs tokens when nothing else is set; refused outside development, and on addresses other than loopback."""

GENERATE = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

_PLACEHOLDERS = ("do-not-deploy", "changeme", "change-me", "change_me", "placeholder", "example", "your-secret")
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_CREDENTIALS = frozenset({"passfile", "sslcert", "krbsrvname"})
_CREDENTIALS_OF_LIBPQ = ("PGPASSWORD", "PGPASSFILE", "PGSSLCERT")
_IN_ORDER = (
    ("database_lock_timeout", "database_statement_timeout"),
    ("database_statement_timeout", "database_transaction_timeout"),
    ("sign_in_first_pause", "sign_in_max_pause"),
    ("outbox_retry_base", "outbox_retry_cap"),
    ("session_idle_ttl", "session_max_ttl"),
)
"""Pairs of settings of which the first must not be above the second."""
_LEAST_MEMORY = ((1, 47_104), (2, 19_456), (sys.maxsize, 12_288))
"""The KiB that argon2id needs with up to this many passes. ASVS 5.0, appendix C."""


class Values(Protocol):
    """What the rules read of `Settings`, which calls them."""

    @property
    def secret_key(self) -> SecretStr: ...
    @property
    def secret_key_previous(self) -> SecretStr | None: ...
    @property
    def metrics_token(self) -> SecretStr | None: ...
    @property
    def mail_url(self) -> SecretStr | None: ...
    @property
    def verifies_email(self) -> bool: ...
    @property
    def database_echo(self) -> bool: ...
    @property
    def argon2_memory_kib(self) -> int: ...
    @property
    def argon2_time_cost(self) -> int: ...
    @property
    def private_hosts(self) -> str: ...
    def __iter__(self) -> Iterator[tuple[str, Any]]: ...


class Fault(NamedTuple):
    """What is wrong with a setting, by its field's name, and what would be right."""

    setting: str
    message: str


Rule: TypeAlias = Callable[[Values], Iterator[Fault]]


def keys_are_strong(settings: Values) -> Iterator[Fault]:
    """The signing keys have at least 32 random characters, and the previous one differs from the current one."""
    keys = {"secret_key": settings.secret_key, "secret_key_previous": settings.secret_key_previous}
    for name, key in keys.items():
        if key is not None and (weakness := _weakness(key, least=32, variety=8)):
            yield Fault(name, f"{weakness}. Generate one of at least 32 random characters: {GENERATE}")
    if settings.secret_key == settings.secret_key_previous:
        yield Fault(
            "secret_key_previous", "is the same as WAYBILL_SECRET_KEY; set it to the previous key, or leave it empty"
        )


def metrics_token_is_strong(settings: Values) -> Iterator[Fault]:
    """The token for the metrics, if there is one, has at least 16 random characters."""
    token = settings.metrics_token
    if token is not None and (weakness := _weakness(token, least=16, variety=5)):
        yield Fault("metrics_token", f"{weakness}. Generate one of at least 16 random characters: {GENERATE}")


def mail_is_sent(settings: Values) -> Iterator[Fault]:
    """Mails are sent and not written to the log, or new users need not confirm their address."""
    if settings.mail_url is not None and settings.mail_url.get_secret_value() == "console:":
        yield Fault("mail_url", "console: writes tokens to the log; set it to smtp:// or smtps://")
    if settings.mail_url is None and settings.verifies_email:
        yield Fault(
            "mail_url",
            "must be set, since new users confirm their address by mail. Without mail, set "
            "WAYBILL_EMAIL_VERIFICATION=false; registering then reveals who has an account",
        )


def statements_are_not_logged(settings: Values) -> Iterator[Fault]:
    """Statements are not logged."""
    if settings.database_echo:
        yield Fault("database_echo", "writes every statement to the log; set it to false")


def hashes_are_costly(settings: Values) -> Iterator[Fault]:
    """A password hash costs at least 47104 KiB of memory with 1 pass, 19456 with 2, and 12288 with 3 or more."""
    passes = settings.argon2_time_cost
    least = next(memory for most, memory in _LEAST_MEMORY if passes <= most)
    if settings.argon2_memory_kib < least:
        yield Fault(
            "argon2_memory_kib",
            f"must be at least {least} with a WAYBILL_ARGON2_TIME_COST of {passes}, so that stolen password hashes are "
            "slow to guess",
        )


def limits_are_in_order(settings: Values) -> Iterator[Fault]:
    """A limit that is part of another one is not above it."""
    for lower, upper in _IN_ORDER:
        if getattr(settings, lower) > (most := getattr(settings, upper)):
            yield Fault(lower, f"must be at most {most:g}, which is WAYBILL_{upper.upper()}")


def databases_are_protected(settings: Values) -> Iterator[Fault]:
    """A database on another host has a password or a client certificate, and TLS unless its host is private."""
    for name, address in _addresses(settings):
        if not address.startswith("postgres"):
            continue
        url = make_url(address)
        hosts = [host for host in _hosts_of(url, os.environ) if not is_loopback(host)]
        if hosts and not _has_credentials(url, os.environ):
            yield Fault(
                name,
                f"needs a password or a client certificate for {', '.join(hosts)}: postgresql://USER:PASSWORD@HOST/NAME"
                ", or ?sslcert=FILE&sslkey=FILE",
            )
        if (url.query.get("sslmode") or url.query.get("ssl")) not in _ENCRYPTED:
            yield from _unencrypted(settings, name, hosts, "append ?sslmode=verify-full&sslrootcert=FILE")


def redis_is_protected(settings: Values) -> Iterator[Fault]:
    """A Redis on another host has a password, and TLS unless its host is private."""
    for name, address in _addresses(settings):
        if not address.startswith("redis"):
            continue
        url = parse_url(address)
        host = str(url.get("host") or "localhost")
        if is_loopback(host):
            continue
        if not url.get("password"):
            yield Fault(name, f"needs a password for {host}: rediss://:PASSWORD@HOST:PORT/DB")
        if url.get("connection_class") is not SSLConnection:
            yield from _unencrypted(settings, name, [host], "use rediss://")


OF_ADDRESSES: tuple[Rule, ...] = (databases_are_protected, redis_is_protected)
"""The rules of a process that only migrates, and needs no secrets."""

RULES: tuple[Rule, ...] = (
    keys_are_strong,
    metrics_token_is_strong,
    mail_is_sent,
    statements_are_not_logged,
    hashes_are_costly,
    limits_are_in_order,
    *OF_ADDRESSES,
)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this host, or is reached at it, is on this machine and hidden from others."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.startswith("/")


def _weakness(secret: SecretStr, least: int, variety: int) -> str | None:
    """What makes the secret easy to guess; None if nothing does. Hardly any random secret is refused."""
    value = secret.get_secret_value()
    if value == DEVELOPMENT_SECRET:
        return "is the development secret, which everyone can read"
    if any(word in value.lower() for word in _PLACEHOLDERS):
        return "is an example from some documentation"
    if len(value) < least:
        return f"has {len(value)} characters"
    steps = {ord(after) - ord(before) for before, after in pairwise(value)}
    if len(set(value)) < variety or len(steps) < variety or value in (value * 2)[1:-1]:
        return "repeats few characters or a short piece, or is a sequence such as 123"
    return None


def _addresses(settings: Values) -> Iterator[tuple[str, str]]:
    """Every setting that is the address of a server. Whatever is called `..._url` is one."""
    for name, value in settings:
        if name.endswith("_url") and value is not None:
            yield name, value.get_secret_value() if isinstance(value, SecretStr) else value


def _hosts_of(url: URL, environ: Mapping[str, str]) -> list[str]:
    """The hosts of a database; folders of sockets are among them. Without one, the driver looks for a local socket."""
    given = url.query.get("host", ())
    named = [url.host or "", *((given,) if isinstance(given, str) else given)]
    hosts = [unquote(host) for several in named for host in several.split(",") if host]
    hosts = hosts or [host for host in environ.get("PGHOST", "").split(",") if host]
    return [host.partition(":")[0] if host.count(":") == 1 else host for host in hosts]


def _has_credentials(url: URL, environ: Mapping[str, str]) -> bool:
    return bool(url.password or url.query.keys() & _CREDENTIALS or any(environ.get(n) for n in _CREDENTIALS_OF_LIBPQ))


def _unencrypted(settings: Values, name: str, hosts: list[str], remedy: str) -> Iterator[Fault]:
    """A fault if one of the hosts, to which nothing is encrypted, is not on a private network."""
    private = {host.strip() for host in settings.private_hosts.split(",")}
    if exposed := [host for host in hosts if not is_loopback(host) and host not in private]:
        yield Fault(
            name,
            f"sends data to {', '.join(exposed)} unencrypted: {remedy}; or name the host in WAYBILL_PRIVATE_HOSTS if "
            "only machines of this installation are on that network",
        )
