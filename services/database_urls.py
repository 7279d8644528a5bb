"""Addresses of PostgreSQL: URLs with libpq's options for TLS, as users write them and as the driver takes them."""

from pathlib import Path
from ssl import get_default_verify_paths
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url

_TLS = frozenset(
    {
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslcrl",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    }
)
"""Options about TLS that a database URL may have, as libpq names them."""

_TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFYING = ("verify-ca", "verify-full")
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_SYSTEM = "system"
"""As `sslrootcert`: the certificates that this machine trusts."""

_OTHER_OPTIONS = frozenset({"host", "port", "passfile", "ssl", "target_session_attrs", "krbsrvname", "gsslib"})


def check(address: str) -> None:
    """Raises `ValueError`, which says what is wrong, if this is not an address that the driver can use."""
    try:
        url = make_url(address)
    except Exception as error:
        raise ValueError("not a database URL; expected postgresql://USER:PASSWORD@HOST:PORT/NAME") from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("Waybill needs PostgreSQL; expected postgresql://USER:PASSWORD@HOST:PORT/NAME")
    if unknown := url.query.keys() - _TLS - _OTHER_OPTIONS:
        raise ValueError(f"unknown options in the URL: {', '.join(sorted(unknown))}")
    if fault := _fault_of_tls(url):
        raise ValueError(fault)


def _fault_of_tls(url: URL) -> str | None:
    """What is wrong with the options about TLS; None if nothing is."""
    mode = url.query.get("sslmode")
    if mode is not None and "ssl" in url.query:
        # The driver would heed `ssl`, while everyone who checks the address reads `sslmode`.
        return "sslmode and ssl are two names of one option; leave ssl out"
    if mode is not None and mode not in _TLS_MODES:
        return f"sslmode must be one of: {', '.join(_TLS_MODES)}"
    if mode in _VERIFYING and "sslrootcert" not in url.query:
        return f"sslmode={mode} needs sslrootcert=FILE, with the certificates that may sign the server's, or =system"
    for name in _TLS_FILES:
        file = url.query.get(name)
        if file is None or (name, file) == ("sslrootcert", _SYSTEM):
            continue
        try:
            Path(str(file)).open("rb").close()
        except OSError as error:
            return f"{name}: cannot read {file}: {error.strerror}"
    return None


def for_asyncpg(address: str) -> URL:
    """The address as asyncpg takes it, through SQLAlchemy."""
    url = make_url(address).set(drivername="postgresql+asyncpg")
    tls = {name: value for name, value in url.query.items() if name in _TLS}
    if tls.get("sslrootcert") == _SYSTEM:
        # Known to libpq, but not to asyncpg.
        tls["sslrootcert"] = get_default_verify_paths().cafile or get_default_verify_paths().openssl_cafile
    if not tls:
        return url
    # asyncpg reads these options only from a DSN, which it uses for what the other arguments leave out.
    others = {name: value for name, value in url.query.items() if name not in _TLS}
    return url.set(query={**others, "dsn": f"postgresql:///?{urlencode(tls, doseq=True)}"})
