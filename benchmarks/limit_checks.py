"""What a rate limit costs a request in CPU time: `python -m benchmarks.limit_checks`.

One application, in this process, gets the same request over and over, with the limits on and off in short turns, so
that the machine's other work disturbs both alike. The request is an order whose body is not JSON: it passes the edge
and needs no database.
"""

import argparse
import asyncio
from collections.abc import Mapping
from statistics import median
from time import thread_time
from typing import Any

from fastapi import FastAPI
from starlette.types import Message

from benchmarks.sessions import session_of
from benchmarks.stage import Stage, open_stage
from services.api.rate_metrics import trips
from services.api.tokens import Tokens
from services.app import create_app
from services.settings import Settings

_REQUESTS = 100
"""Requests in a turn."""
_CALLERS = 200


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit_checks", description=__doc__)
    parser.add_argument("--turns", type=int, default=300, help="turns with the limits on, and as many with them off")
    options = parser.parse_args()
    with open_stage() as stage:
        stage.migrate("measured")
        asyncio.run(_run(stage, options.turns))


async def _run(stage: Stage, turns: int) -> None:
    most = Settings.model_fields["rate_limit_write"].default
    settings = stage.settings("measured", rate_limit_write=most)
    app = create_app(settings)
    tokens = Tokens.from_settings(settings)
    shown = [tokens.make(session_of(number)) for number in range(1, _CALLERS + 1)]
    async with app.router.lifespan_context(app):
        limits = app.state.waybill.rate_limits
        quotas = limits._quotas
        seen: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * turns + 2):
            on = turn % 2 == 0
            limits._quotas = quotas if on else {}
            began = thread_time()
            for number in range(_REQUESTS):
                await _send(app, shown[(turn * _REQUESTS // 2 + number) % _CALLERS])
            if turn >= 2:
                seen[on].append((thread_time() - began) / _REQUESTS * 1e6)
    with_limits, without = median(seen[True]), median(seen[False])
    print(
        f"a request with limits {with_limits:.1f} us, without {without:.1f} us: {with_limits - without:.1f} us for it"
    )
    print(f"{trips._value.get():.0f} trips to Redis for {turns * _REQUESTS:,} requests of {_CALLERS} callers")


async def _send(app: FastAPI, token: str) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(_: Mapping[str, Any]) -> None: ...

    headers = {"host": "waybill", "content-type": "application/json", "authorization": f"Bearer {token}"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/orders",
        "raw_path": b"/v1/orders",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("waybill", 80),
    }
    await app(scope, receive, send)


if __name__ == "__main__":
    main()
