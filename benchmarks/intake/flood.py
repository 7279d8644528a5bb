"""A flood of attempts to sign in, beside orders at a steady rate."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlencode

from benchmarks.intake.bench import ITEMS, Bench, Found
from benchmarks.outbox.table import Line, at_most
from benchmarks.over_http import WARMUP_SECONDS, Requests, measured, middle, order_requests, send, some_orders
from benchmarks.report import Measured
from benchmarks.stage import ROOT
from services.local.embedded.ports import LOOPBACK

_OFFERED = 200
_HONEST_CLIENTS = 64
_FLOODING_CLIENTS = 200
_ACCOUNTS = 100_000
_MARGIN = 5.0
"""Seconds that the flood lasts beyond what is measured."""


def place_beside_a_flood(bench: Bench) -> Found:
    """Orders at a steady rate, with and without 200 clients that try to sign in as fast as they get replies.

    The flood comes from one address, and each attempt is for another account. The limit for an address is off:
    otherwise almost every attempt would be refused without checking a password.
    """
    statuses: list[str] = []
    runs = bench.alternate(
        {
            "calm": partial(_offer, bench, "no flood", statuses, flood=False),
            "flooded": partial(_offer, bench, "flood", statuses, flood=True),
        }
    )
    calm, flooded = middle(runs["calm"]), middle(runs["flooded"])
    line = Line(
        f"orders beside {_FLOODING_CLIENTS} clients that try to sign in: p99 to that without them",
        flooded.p99_ms / calm.p99_ms,
        "x",
        at_most(1.5),
        note=f"{flooded.p99_ms:.1f} and {calm.p99_ms:.1f} ms; p50 {flooded.p50_ms:.1f} and {calm.p50_ms:.1f} ms. "
        f"The flood got: {statuses[0]}",
    )
    return Found(f"{_OFFERED} orders/s offered, and attempts to sign in", [calm, flooded], [line])


def _offer(bench: Bench, name: str, statuses: list[str], *, flood: bool) -> Measured:
    orders = some_orders(bench.shop, ITEMS)
    seconds = bench.seconds + WARMUP_SECONDS + _MARGIN

    @contextmanager
    def flooding(target: dict[str, Any]) -> Iterator[None]:
        job = {**target, "clients": _FLOODING_CLIENTS, "warmup": 0.0, "seconds": seconds, "requests": _attempts()}
        flooder = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert flooder.stdin is not None
            flooder.stdin.write(json.dumps(job).encode())
            flooder.stdin.close()
            yield
            assert flooder.stdout is not None
            seen = json.loads(flooder.stdout.read())
            refused = ", ".join(f"{number:,} x {status}" for status, number in seen["wrong"].items())
            statuses.append(f"{seen['replies']:,} replies, among them {refused}")
        finally:
            flooder.kill()
            flooder.wait()

    seen = send(
        bench.stage,
        "shop",
        {"clients": _HONEST_CLIENTS, "seconds": bench.seconds, "rate": _OFFERED},
        lambda settings: order_requests(settings, orders),
        against=flooding if flood else None,
        settings={"sign_in_address_attempts": 0},
    )
    return measured(name, seen)


def _attempts() -> Requests:
    """Attempts to sign in with a wrong password, each to an account of its own."""
    requests = []
    for number in range(_ACCOUNTS):
        body = urlencode({"grant_type": "password", "username": f"u{number}@example.com", "password": "not this one"})
        head = (
            f"POST /v1/token HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\nX-Attempt: "
        )
        requests.append((head, f"\r\n\r\n{body}", "401"))
    return requests
