"""Milliseconds, and what PostgreSQL did, for each request and each command."""

import http.client
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import psycopg
from typer.testing import CliRunner

from benchmarks import many
from benchmarks.console import reads, rows
from benchmarks.console.reads import Ask
from benchmarks.sessions import session_of
from benchmarks.stage import ROOT, Stage, environment_of, running_api
from services.api.tokens import Tokens
from services.cli.main import app as cli
from services.console import assets
from services.console.tokens import FIELD, form_token
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings, get_settings

_COOKIE = f"__Secure-waybill_console={rows.TOKEN}"
_STREAMED = ("/live", ".csv", ".ndjson")
"""Of these, the time until the first piece."""


@dataclass(frozen=True, slots=True)
class Read:
    """One request or command. Times are milliseconds, `worked` those of PostgreSQL's statements.

    `blocks` is how many 8 kB blocks the statements touched. Of a command, `whole` is the CPU time of its process,
    with the start of Python. The fastest is what counts: what other work on the machine adds is not the read's.
    """

    name: str
    first: float
    fastest: float
    median: float
    longest: float
    worked: float
    blocks: int
    whole: float | None = None


class Database:
    """What the statements of a database cost, by `pg_stat_statements`."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def one(self, statement: Any) -> Any:
        row = self.connection.execute(statement).fetchone()
        assert row is not None, statement
        return row[0]

    @contextmanager
    def counted(self) -> Iterator[list[float]]:
        """The milliseconds of the statements of the block, and the blocks that they touched."""
        found: list[float] = []
        self.connection.execute("SELECT pg_stat_statements_reset()")
        yield found
        row = self.connection.execute(_COST).fetchone()
        assert row is not None
        found += map(float, row)


def requests(
    stage: Stage, settings: Settings, database: Database, names: Mapping[str, str], rounds: int, asks: Iterable[Ask]
) -> Iterator[Read]:
    """Each request, several times on a connection that is open, to one API process."""
    operator = int(database.one(_OPERATOR))
    token = Tokens.from_settings(settings).make(session_of(operator))
    with running_api(stage, settings) as (_, port):
        client = _Client(port, token)
        for ask in asks:
            # The first one is planned, and finds nothing in PostgreSQL's memory, perhaps.
            first = client.ask(ask, names)
            with database.counted() as cost:
                taken = [client.ask(ask, names) for _ in range(rounds)]
            worked, blocks = (one / rounds for one in cost)
            yield Read(ask.name, first, min(taken), statistics.median(taken), max(taken), worked, round(blocks))
        client.close()


class _Client:
    """Sends requests as a browser and as a program do."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=120)
        self._token = token

    def ask(self, ask: Ask, names: Mapping[str, str]) -> float:
        """Milliseconds until the reply is there; of a stream, its first piece."""
        headers = {"Cookie": _COOKIE, "Sec-Fetch-Site": "same-origin"}
        method, body = "GET", None
        if not ask.path.startswith("/console"):
            headers = {"Authorization": f"Bearer {self._token}"}
        if ask.form is not None:
            given = {name: value.format_map(names) for name, value in ask.form.items()}
            method, body = "POST", urlencode({**given, FIELD: form_token(rows.TOKEN)})
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if ask.body is not None:
            method, body = "POST", json.dumps(_filled(ask.body, names))
            headers["Content-Type"] = "application/json"
        target = ask.target(names)
        started = time.perf_counter()
        self._connection.request(method, target, body, headers)
        reply = self._connection.getresponse()
        if is_streamed := any(one in target for one in _STREAMED):
            reply.read(1)
        else:
            text = reply.read()
        taken = (time.perf_counter() - started) * 1000
        if reply.status >= 400 and (reply.status, method) != (404, "GET"):
            sys.exit(f"{method} {target}: {reply.status} {reply.read().decode() or text.decode()[-2000:]}")
        if is_streamed:
            self.close()
        return taken

    def close(self) -> None:
        self._connection.close()


def _filled(body: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    filled = {name: value.format_map(names) if isinstance(value, str) else value for name, value in body.items()}
    return {name: int(value) if name == "buyer_id" else value for name, value in filled.items()}


def commands(settings: Settings, database: Database, names: Mapping[str, str], rounds: int) -> Iterator[Read]:
    """Each command: in this process, without the start of Python and what it imports; and as a process of its own."""
    environment = environment_of(settings)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("WAYBILL_")})
    get_settings.cache_clear()
    for command in ("--help", *reads.COMMANDS):
        arguments = shlex.split(command.format_map(names))
        invoke = _invoked(command, arguments)
        first = invoke()
        with database.counted() as cost:
            taken = [invoke() for _ in range(rounds)]
        worked, blocks = (one / rounds for one in cost)
        whole = _process(arguments, environment)
        shown = f"waybill {command}"
        yield Read(shown, first, min(taken), statistics.median(taken), max(taken), worked, round(blocks), whole)


def _invoked(command: str, arguments: list[str]) -> Callable[[], float]:
    def invoke() -> float:
        started = time.perf_counter()
        done = CliRunner().invoke(cli, arguments)
        taken = (time.perf_counter() - started) * 1000
        # The doctor has something to say about this installation, and not every search finds something.
        if done.exit_code not in (0, 1) or (done.exception and not isinstance(done.exception, SystemExit)):
            sys.exit(f"waybill {command}: {done.output} {done.exception!r}")
        return taken

    return invoke


def _process(arguments: list[str], environment: Mapping[str, str]) -> float:
    started = _cpu_of_children()
    subprocess.run(
        [sys.executable, "-P", "-m", "services.cli", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    return (_cpu_of_children() - started) * 1000


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def names_of(database: Database, scale: rows.Scale) -> dict[str, str]:
    """What the requests ask for."""
    found = {name: str(database.one(statement.format(busy=scale.burst))) for name, statement in _NAMES.items()}
    asset = next(iter(assets.FILES))
    return {**found, "version": assets.VERSION, "asset": asset, "position": "14", "behind": "26"}


_COST = """
    SELECT coalesce(sum(total_exec_time + total_plan_time), 0), coalesce(sum(shared_blks_hit + shared_blks_read), 0)
    FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'
    AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_OPERATOR = "SELECT min(id) FROM users WHERE role = 'operator' AND deleted_at IS NULL AND is_active"
_NTH = "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM orders) AS one WHERE n = {number}"
_NAMES = {
    "order_id": "SELECT id FROM orders WHERE status = 'fulfilled' ORDER BY id OFFSET 1000 LIMIT 1",
    "of_big_buyer": f"SELECT id FROM orders WHERE buyer_id = (SELECT min(id) + {many.BIG_BUYER - 1} FROM users)"
    " AND status = 'fulfilled' ORDER BY id DESC LIMIT 1",
    "in_burst": _NTH.format(number="{busy}"),
    "waiting_order": "SELECT id FROM orders WHERE status = 'awaiting_payment' ORDER BY id DESC LIMIT 1",
    "event_id": "SELECT event_id FROM outbox WHERE position = 14",
    "letter": "SELECT max(position) FROM dead_letters",
    "letter_event_id": "SELECT event_id FROM dead_letters ORDER BY position DESC LIMIT 1",
    "action_id": "SELECT id FROM bulk_actions ORDER BY id LIMIT 1",
    "buyer_id": f"SELECT min(id) + {many.BIG_BUYER - 1} FROM users",
    "seller_id": f"SELECT min(id) + {many.BIG_SELLER - 1} FROM users",
    "user_id": "SELECT min(id) + 77 FROM users",
}
