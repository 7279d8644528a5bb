"""What every process measures about itself, and the port on which Prometheus reads it."""

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from services.settings import Settings
from services.shielding import Lasting

logger = logging.getLogger(__name__)

PORTS = 64
"""How many ports a process tries, from the one in the settings: each process of a host takes the first free one."""

SEND_IT = "the metrics token is required: Authorization: Bearer TOKEN"
NOT_AVAILABLE = "metrics are not available here"

_LAG_INTERVAL = 0.25
"""Seconds between two measurements of the event loop's lag."""

_IDLE = 10.0
"""Seconds after which a silent scraper loses its connection."""

registry = CollectorRegistry()
ProcessCollector(registry=registry)
_lag = Histogram(
    "waybill_event_loop_lag_seconds",
    "How late the event loop woke a task that had slept for a quarter of a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=registry,
)


def refusal(settings: Settings, token: str | None) -> Literal[401, 404] | None:
    """Why this scraper may not read the metrics; None if it may. `token` is what it sent as a bearer token."""
    wanted = settings.metrics_token
    if wanted is None:
        return None if settings.is_development else 404
    if token is None or not hmac.compare_digest(token.encode(), wanted.get_secret_value().encode()):
        return 401
    return None


def rendered(families: Iterable[Metric]) -> bytes:
    """The metrics in Prometheus' text format."""
    return generate_latest(_Scrape(families))


def pool_connections(engines: Mapping[str, AsyncEngine]) -> Metric:
    """The connections of this process by pool: those that are in use, and those that are idle."""
    family = GaugeMetricFamily(
        "waybill_database_pool_connections", "Connections of this process by pool.", labels=("pool", "state")
    )
    for name, engine in engines.items():
        pool = engine.pool
        assert isinstance(pool, QueuePool)
        family.add_metric((name, "in_use"), pool.checkedout())
        family.add_metric((name, "idle"), pool.checkedin())
    return family


def clock_skew(seconds: float) -> Metric:
    """How far this process's clock is from the database's."""
    explained = "How far this host's clock is ahead of the database's."
    return GaugeMetricFamily("waybill_clock_skew_seconds", explained, value=seconds)


class LoopLag:
    """Measures how late the event loop is, from entry to exit: a blocked loop delays everything it runs."""

    async def __aenter__(self) -> "LoopLag":
        self._measuring = Lasting(_measure(), "loop lag", _complain_of_its_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._measuring.end()


async def _measure() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_INTERVAL
        await asyncio.sleep(_LAG_INTERVAL)
        _lag.observe(max(0.0, loop.time() - due))


def _complain_of_its_end(why: str) -> None:
    logger.error("the event loop's lag is no longer measured: %s", why)


class MetricsServer:
    """Serves `GET /metrics` on a port of its own, from entry to exit.

    It has a thread, so that it answers while the event loop is blocked. `render` is called in that thread. The process
    runs without it if all ports are taken.
    """

    def __init__(self, settings: Settings, first_port: int, render: Callable[[], bytes]) -> None:
        self._settings = settings
        self._first_port = first_port
        self._render = render
        self._server: _Server | None = None

    @property
    def port(self) -> int | None:
        """The port it listens on; None if it does not."""
        return None if self._server is None else self._server.server_port

    def __enter__(self) -> "MetricsServer":
        if not self._first_port:
            return self
        host = self._settings.metrics_host
        ports = range(self._first_port, min(self._first_port + PORTS, 65_536))
        for port in ports:
            try:
                self._server = _Server((host, port), _Handler)
            except OSError as error:
                failed = error
            else:
                self._server.set_app(self._answer)
                threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
                logger.info("metrics on http://%s:%d/metrics", host, port)
                return self
        logger.error("no metrics: cannot listen on %s, ports %d to %d: %s", host, ports[0], ports[-1], failed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        refused = refusal(self._settings, token if scheme.lower() == "bearer" else None)
        if refused is None and environ["PATH_INFO"] != "/metrics":
            return _send(start, 404, b"the metrics are at /metrics\n")
        if refused == 404:
            return _send(start, 404, f"{NOT_AVAILABLE}\n".encode())
        if refused == 401:
            return _send(start, 401, f"{SEND_IT}\n".encode(), ("WWW-Authenticate", "Bearer"))
        if environ["REQUEST_METHOD"] != "GET":
            return _send(start, 405, b"only GET is allowed\n", ("Allow", "GET"))
        try:
            body = self._render()
        except TimeoutError:
            return _send(start, 503, b"this process did not answer in time\n")
        return _send(start, 200, body, ("Content-Type", CONTENT_TYPE_LATEST))


class _Scrape(Collector):
    """The metrics of one scrape."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Handler(WSGIRequestHandler):
    timeout = _IDLE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base class)
        """Scrapes are not logged."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The base class would look the host's name up, which takes long where there is no name server.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


def _send(start: StartResponse, status: int, body: bytes, *headers: tuple[str, str]) -> list[bytes]:
    sent = dict([("Content-Type", "text/plain; charset=utf-8"), *headers, ("Content-Length", str(len(body)))])
    start(f"{status} {HTTPStatus(status).phrase}", list(sent.items()))
    return [body]
