"""How long bad requests keep the API's event loop busy: `python -m benchmarks.bad_bodies`.

Each is sent to the application in this process, by a caller with a valid token. CPU time is what counts: what other
processes do meanwhile does not.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

import httpx2
import psycopg
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from benchmarks.bad_requests import BAD, Bad
from benchmarks.sessions import BEGIN, session_of
from benchmarks.stage import Stage, open_stage
from services.api.tokens import Tokens
from services.app import create_app
from services.collector import spare_what_stays


class Held:
    """Inside the block: the most CPU time, in seconds, that the event loop spent without starting its next round."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._before = 0.0
        self._ends = False

    def __enter__(self) -> "Held":
        self._before = time.thread_time()
        asyncio.get_running_loop().call_soon(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._note()
        self._ends = True

    def _look(self) -> None:
        if not self._ends:
            self._note()
            # In the next round, after whatever is ready by then.
            asyncio.get_running_loop().call_soon(self._look)

    def _note(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._before)
        self._before = now


@dataclass(frozen=True, slots=True)
class Measured:
    """The longest of all rounds, and what was answered."""

    name: str
    sent: int
    status: int
    replied: int
    held_ms: float


def request_of(client: httpx2.AsyncClient, bad: Bad, token: str) -> httpx2.Request:
    """A bad request of the token's owner, ready to be sent."""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "bad", "Content-Type": bad.content_type}
    return client.build_request(bad.method, bad.path, content=bad.body or None, headers=headers)


async def measure(client: httpx2.AsyncClient, token: str, rounds: int) -> AsyncIterator[Measured]:
    """Send all of them, this number of times each."""
    for name, bad in BAD.items():
        held = 0.0
        for _ in range(rounds):
            request = request_of(client, bad, token)
            with Held() as one:
                reply = await client.send(request)
            held = max(held, one.longest)
        yield Measured(name, len(bad.body), reply.status_code, len(reply.content), held * 1000)


def main() -> int:
    options = _options()
    with open_stage() as stage:
        measured = asyncio.run(_run(stage, options.rounds))
    if options.json:
        print(json.dumps([asdict(one) for one in measured], indent=2))
    else:
        _print(measured)
    return int(any(one.held_ms > 50 or not 400 <= one.status < 500 for one in measured))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_bodies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how many times each is sent (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


async def _run(stage: Stage, rounds: int) -> list[Measured]:
    await asyncio.to_thread(stage.migrate, "measured")
    with psycopg.connect(stage.postgres.url("measured"), autocommit=True) as connection:
        connection.execute("INSERT INTO users (email, full_name, hashed_password) VALUES ('a@example.com', 'A', '!')")
        connection.execute(BEGIN)
        ((user_id,),) = connection.execute("SELECT id FROM users").fetchall()
    settings = stage.settings("measured")
    app = create_app(settings)
    # As in a server process.
    spare_what_stays()
    async with app.router.lifespan_context(app), _client(app) as client:
        token = Tokens.from_settings(settings).make(session_of(user_id))
        return [one async for one in measure(client, token, rounds)]


@asynccontextmanager
async def _client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://waybill") as client:
        yield client


def _print(measured: list[Measured]) -> None:
    table = Table("request", "bytes sent", "status", "bytes replied", "loop busy, CPU ms")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in measured:
        table.add_row(one.name, f"{one.sent:,}", str(one.status), f"{one.replied:,}", f"{one.held_ms:.1f}")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
