"""`waybill top`: what the engine does, live in the terminal."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.cli.console import CommandError, plain_errors, say, until_interrupted
from services.cli.run import counted, lasting, plain_console, show_json
from services.database import Database, open_database
from services.fields import now
from services.outbox.control import service as control
from services.outbox.control.repository import COUNTED
from services.outbox.control.schemas import TypeState, WorkerState
from services.settings import get_settings
from services.skew import follow_database
from services.startup import check_schema, plain_connecting, reason_of
from services.unit_of_work import UnitOfWork

_RATED = timedelta(seconds=60)
_MOST_WRITTEN = 1_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One event type: what waits and why, the age of the first ready event, and its dead letters."""

    type: str
    ready: int
    waiting: dict[str, int]
    """By reason; counts stop at 10,000."""
    oldest_ready_seconds: float | None
    dead_letters: int
    paused: bool
    limit: int | None
    workers: int


@dataclass(frozen=True, slots=True)
class Working:
    """One worker. `failed` counts attempts that failed since it started."""

    host: str
    pid: int
    processed_per_second: float
    processed: int
    failed: int
    silent_seconds: float
    complaint: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the engine. Rates are events a second over the last minute: `written` to the log, and `processed`."""

    at: datetime
    written_per_second: float
    processed_per_second: float
    waiting: int
    retrying: int
    oldest_due_seconds: float
    dead_letters: int
    types: Sequence[Kind]
    workers: Sequence[Working]


def top(
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print it, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object with --once, otherwise one a line for each look.")
    ] = False,
) -> None:
    """Show rates, what waits and why, the oldest event, failures and workers, live until Ctrl-C.

    Without a terminal, it prints a line for each look. All counts stop at 10,000.
    """
    with plain_errors(), until_interrupted():
        try:
            asyncio.run(_top(every, once=once, as_json=as_json))
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise CommandError(f"the database cannot be read: {reason_of(error)}") from error


async def look(uow: UnitOfWork) -> Look:
    """What the engine does now. Meant for a transaction of its own."""
    types = await control.types(uow, COUNTED)
    workers = await control.workers(uow)
    at = now()
    written = await uow.log.written_since(at - _RATED, _MOST_WRITTEN)
    backlog = await uow.control.backlog()
    working = [_working(one) for one in workers]
    return Look(
        at=at,
        written_per_second=round(written / _RATED.total_seconds(), 2),
        processed_per_second=round(sum(one.processed_per_second for one in working), 2),
        waiting=backlog["waiting"],
        retrying=backlog["retrying"],
        oldest_due_seconds=backlog["oldest_due_seconds"],
        dead_letters=backlog["dead_letters"],
        types=[_kind(one) for one in types],
        workers=working,
    )


def _kind(one: TypeState) -> Kind:
    reasons = {why: number for why, number in one.reasons.items() if why != "ready"}
    return Kind(
        one.type,
        one.ready,
        reasons,
        one.oldest_ready_seconds,
        one.dead_letters,
        one.paused,
        one.max_batches,
        one.workers,
    )


def _working(one: WorkerState) -> Working:
    report = one.report
    return Working(
        one.host,
        one.pid,
        float(report.get("rates", {}).get("processed") or 0),
        int(report.get("processed") or 0),
        int(report.get("retried") or 0) + int(report.get("buried") or 0),
        round(one.silent_seconds, 1),
        one.complaint,
    )


async def _top(every: float, *, once: bool, as_json: bool) -> None:
    settings = get_settings()
    async with open_database(settings, "cli") as database:
        with plain_connecting(settings):
            await check_schema(database.engine, settings)
            await follow_database(database.engine)
        if once:
            async with UnitOfWork(database.write) as uow:
                found = await look(uow)
            if as_json:
                show_json(found)
            else:
                plain_console().print(_page(found))
            return
        with ExitStack() as stack:
            await _show_for_ever(database, every, _output(stack, as_json=as_json))


class _Lines:
    """A line for each look; False once no one reads them."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, found: Look) -> bool:
        return say(to_json(found).decode() if self._as_json else _line(found))

    def complain(self, trouble: str) -> None:
        typer.echo(trouble, err=True)


class _Screen:
    """The whole terminal."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._latest: Look | None = None

    def show(self, found: Look) -> bool:
        self._latest = found
        self._live.update(_page(found), refresh=True)
        return True

    def complain(self, trouble: str) -> None:
        before = [] if self._latest is None else [_page(self._latest)]
        self._live.update(Group(Text(trouble, "bold red"), *before), refresh=True)


def _output(stack: ExitStack, *, as_json: bool) -> _Lines | _Screen:
    console = plain_console()
    if as_json or not console.is_terminal:
        return _Lines(as_json=as_json)
    return _Screen(stack.enter_context(Live(console=console, screen=True, auto_refresh=False)))


async def _show_for_ever(database: Database, every: float, output: _Lines | _Screen) -> None:
    while True:
        started = time.monotonic()
        try:
            async with UnitOfWork(database.write) as uow:
                found = await look(uow)
        except (DBAPIError, PoolTimeout, OSError) as error:
            # The database may come back.
            output.complain(f"the database cannot be read: {reason_of(error)}")
        else:
            if not output.show(found):
                return
        await asyncio.sleep(max(0.0, every - (time.monotonic() - started)))


def _line(found: Look) -> str:
    workers = counted(len(found.workers), "worker")
    unwell = sum(one.complaint is not None for one in found.workers)
    return (
        f"{found.at:%H:%M:%S}  written {found.written_per_second:g}/s  processed {found.processed_per_second:g}/s  "
        f"waiting {found.waiting}  retrying {found.retrying}  oldest {lasting(found.oldest_due_seconds)}  "
        f"dead letters {found.dead_letters}  {workers}" + (f", {unwell} unwell" if unwell else "")
    )


def _page(found: Look) -> Group:
    return Group(Text(_line(found), "bold"), "", _types(found.types), "", _workers(found.workers))


def _types(found: Sequence[Kind]) -> Table:
    return _table(
        ("type", "ready", "oldest", "waits for", "dead", "state", "limit", "workers"),
        (
            (
                one.type,
                one.ready,
                lasting(one.oldest_ready_seconds),
                ", ".join(f"{why} {number}" for why, number in one.waiting.items()),
                one.dead_letters,
                "paused" if one.paused else "running",
                one.limit,
                one.workers,
            )
            for one in found
        ),
    )


def _workers(found: Sequence[Working]) -> Table:
    return _table(
        ("worker", "/s", "processed", "failed", "beat", "health"),
        (
            (
                f"{one.host} {one.pid}",
                f"{one.processed_per_second:g}",
                one.processed,
                one.failed,
                lasting(one.silent_seconds),
                one.complaint or "ok",
            )
            for one in found
        ),
    )


def _table(headings: Sequence[str], rows: Iterator[Sequence[Any]]) -> Table:
    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    return table
