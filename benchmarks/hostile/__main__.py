"""Honest clients beside 200 hostile ones: `python -m benchmarks.hostile`.

16 honest clients place orders at a steady rate, which is a share of what the API can do here: alone, beside the hostile
clients, and alone again. The rate limits and everything else are as by default in production.
"""

import argparse
import json
import secrets
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.hostile.crowd import NICENESS, Answered, crowds
from benchmarks.hostile.kinds import SHARES, Kind
from benchmarks.outbox.table import Line, at_most, document, show
from benchmarks.over_http import Requests, order_requests, some_orders
from benchmarks.report import percentile
from benchmarks.sessions import session_of
from benchmarks.shop import EARLIER_ORDERS, Shop, open_shop, place_waiting
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_api
from benchmarks.usage import peak_rss_mib, rss_mib
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings

_BUYERS = 200
_HOSTILE_USERS = 50
_CLIENTS = 16
_ITEMS = 3
_SHARE = 0.4
"""The rate of the honest clients, as a share of what the API can do."""
_MORE_PRODUCTS = 100_000
_WARMUP = 3.0
_RECOVERY = 15.0
"""Seconds to wait at most for the API to close the connections of the hostile clients."""

_CATALOG = """
    INSERT INTO products (seller_id, category_id, sku, name, price)
    SELECT (SELECT min(id) FROM users), (SELECT id FROM categories), format('MORE-%%s', n),
        format('%%s of product number %%s', md5(n::text), n), 1 FROM generate_series(1, %s) AS n;
    INSERT INTO inventory (product_id) SELECT id FROM products WHERE sku LIKE 'MORE-%%%%';
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """What the honest clients saw."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: Mapping[str, int]
    api_cpus: float
    postgres_cpus: float
    machine_cpus: float
    rss_mib: float
    """Of the API, at the end of the phase."""

    def __str__(self) -> str:
        return (
            f"{self.rate:,.0f} orders/s, p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms; CPUs: API "
            f"{self.api_cpus:.2f}, PostgreSQL {self.postgres_cpus:.2f}, machine {self.machine_cpus:.2f}; "
            f"RSS of the API {self.rss_mib:.0f} MiB"
        )


@dataclass(frozen=True, slots=True)
class Api:
    """The API that is measured."""

    stage: Stage
    settings: Settings
    pid: int
    port: int

    def phase(self, requests: Requests, seconds: float, rate: float | None = None) -> Phase:
        """Place orders at the rate; without one, as many as 16 clients can."""
        job: dict[str, Any] = {"clients": _CLIENTS, "seconds": seconds, "warmup": _WARMUP, "requests": requests}
        if rate is not None:
            job["rate"] = rate
        target = {"host": LOOPBACK, "ports": [self.port], "pids": [self.pid], "postgres_pid": self.stage.postgres_pid}
        seen = run_beside("benchmarks.load", {**job, **target})
        latencies = sorted(seen["latencies"])
        return Phase(
            rate=seen["replies"] / seen["seconds"],
            p50_ms=percentile(latencies, 0.5) * 1000,
            p99_ms=percentile(latencies, 0.99) * 1000,
            errors=seen["wrong"],
            api_cpus=seen["cpu"] / seen["seconds"],
            postgres_cpus=seen["postgres_cpu"] / seen["seconds"],
            machine_cpus=seen["machine_cpu"] / seen["seconds"],
            rss_mib=rss_mib(self.pid),
        )

    def connections(self) -> int:
        """The open connections of clients, without the one that asks."""
        token = self.settings.metrics_token
        assert token is not None
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.port}/metrics", headers={"Authorization": f"Bearer {token.get_secret_value()}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith("waybill_http_connections_open "))
        return round(float(value)) - 1

    def recovery(self) -> float | None:
        """Seconds until no client is connected and the API is ready; None if that takes too long."""
        began = time.monotonic()
        while self.connections() or not self._is_ready():
            if time.monotonic() - began > _RECOVERY:
                return None
            time.sleep(0.05)
        return time.monotonic() - began

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/readyz", timeout=30) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


def main() -> int:
    options = _options()
    # Exit cleanly, so that servers are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with open_stage() as stage:
        shop = _open_shop(stage)
        limits = {
            name: field.default for name, field in Settings.model_fields.items() if name.startswith("rate_limit_")
        }
        settings = stage.settings("shop", metrics_token=secrets.token_urlsafe(32), **limits)
        with running_api(stage, settings) as (pid, port):
            found = _measure(Api(stage, settings, pid, port), shop, options.seconds, options.pace)
        check_books(stage, "shop")
    title = f"{_CLIENTS} honest clients beside {sum(SHARES.values())} hostile ones; {options.seconds:g} s a phase"
    if options.json:
        print(json.dumps(document(title, found.lines, found.notes), indent=2))
    else:
        show(title, found.lines, found.notes)
    return 0 if all(line.reached for line in found.lines) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured seconds per phase (default: 60)")
    parser.add_argument(
        "--pace", type=float, default=1.0, help="the most requests a second of each hostile client (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _open_shop(stage: Stage) -> Shop:
    """A shop with a history, and a catalog in which searches have something to find."""
    stage.migrate("shop")
    url = stage.postgres.url("shop")
    shop = open_shop(url, _BUYERS + _HOSTILE_USERS)
    place_waiting(url, Shop(shop.buyer_ids[:_BUYERS], shop.product_ids), EARLIER_ORDERS, _ITEMS)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((_CATALOG % _MORE_PRODUCTS).encode())
        connection.execute("VACUUM ANALYZE products, inventory")
        connection.execute("CHECKPOINT")
    return shop


@dataclass(frozen=True, slots=True)
class Found:
    lines: Sequence[Line]
    notes: Sequence[str]


def _measure(api: Api, shop: Shop, seconds: float, pace: float) -> Found:
    honest = order_requests(api.settings, some_orders(Shop(shop.buyer_ids[:_BUYERS], shop.product_ids), _ITEMS))
    tokens = Tokens.from_settings(api.settings)
    hostile = [tokens.make(session_of(user_id)) for user_id in shop.buyer_ids[_BUYERS:]]
    most = api.phase(honest, seconds)
    rate = most.rate * _SHARE
    alone = api.phase(honest, seconds, rate)
    with crowds({"host": LOOPBACK, "port": api.port}, hostile, pace) as answered:
        beside = api.phase(honest, seconds, rate)
    recovered = api.recovery()
    after = api.phase(honest, seconds, rate)
    return Found(
        _lines(api.pid, [most, alone, beside, after], answered, recovered),
        [
            f"as many as possible: {most}",
            f"alone: {alone}",
            f"beside: {beside}",
            f"alone again: {after}",
            *(_answers(kind, replies) for kind, replies in answered.items()),
            f"Each hostile client has an address of its own, and sends at most {pace:g} requests/s (a slow head: "
            f"bytes), the next one after the reply; their processes have a niceness of {NICENESS}.",
        ],
    )


def _answers(kind: Kind, answered: Answered) -> str:
    said = _counted(dict(sorted(answered.replies.items()))) or "nothing yet"
    return f"{SHARES[kind]} clients with {kind} got {answered.rate:.1f} replies/s: {said}"


def _counted(replies: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} x {reply}" for reply, number in replies.items())


def _compared(measure: str, phase: Phase, alone: Phase) -> Line:
    note = f"{phase.p99_ms:.1f} and {alone.p99_ms:.1f} ms; p50 {phase.p50_ms:.1f} and {alone.p50_ms:.1f} ms"
    return Line(measure, phase.p99_ms / alone.p99_ms, "x", at_most(2), note=note)


def _lines(pid: int, phases: Sequence[Phase], answered: Mapping[Kind, Answered], recovered: float | None) -> list[Line]:
    _, alone, beside, after = phases
    faults = {f"{reply} for {kind}": number for kind, one in answered.items() for reply, number in one.faults.items()}
    return [
        _compared("p99 of honest orders beside hostile clients, to that alone", beside, alone),
        _compared("p99 of honest orders afterwards, to that before", after, alone),
        Line(
            "honest orders with another reply than 201, in any phase",
            sum(sum(phase.errors.values()) for phase in phases),
            "orders",
            at_most(0),
            note=", ".join(_counted(phase.errors) for phase in phases if phase.errors),
        ),
        Line(
            "hostile requests answered with a 5xx that is not a documented 503, or not answered",
            sum(faults.values()),
            "replies",
            at_most(0),
            note=_counted(faults),
        ),
        Line(
            "the most memory of the API process",
            peak_rss_mib(pid),
            "MiB",
            at_most(300),
            note=f"{alone.rss_mib:.0f} MiB before the hostile clients came, {after.rss_mib:.0f} MiB at the end",
        ),
        Line("until no connection was left and /readyz answered 200", recovered, "s", at_most(_RECOVERY)),
    ]


if __name__ == "__main__":
    sys.exit(main())
