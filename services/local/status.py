"""`waybill status`: whether a `waybill up` runs here, what it consists of, and whether all is well."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from sqlalchemy import make_url, text

from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR, Facts
from services.cli.run import AsJson, ago, counted, in_one, lasting, show_json, show_table
from services.cli.running import find_running, holder, using_found

_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process that it started; `pid` is None if it does not run."""

    name: str
    pid: int | None
    running: bool


@dataclass(slots=True)
class Status:
    """What `waybill status --json` prints."""

    data_dir: str
    state: str
    """`running`, `starting or stopping`, or `not running`."""
    well: bool = False
    complaints: list[str] = field(default_factory=list)
    pid: int | None = None
    processes: list[Process] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """Without passwords."""
    versions: dict[str, Any] = field(default_factory=dict)
    waiting: int | None = None
    retrying: int | None = None
    oldest_due_seconds: float | None = None
    dead_letters: int | None = None
    books_balanced: bool | None = None
    """According to the last audit, or counted now if there was none."""
    audited_at: datetime | None = None


def status(
    data_dir: Annotated[Path, typer.Option(help="The data folder of the `waybill up`.")] = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show whether a `waybill up` runs in a data folder, its processes, addresses and versions, and what waits.

    Exit codes: 0 it runs and is well; 1 it does not, or a process has ended, the API is not ready, a worker is
    unhealthy, or the books do not balance.
    """
    with plain_errors():
        found = status_of(data_dir)
        if as_json:
            show_json(asdict(found))
        else:
            _show(found)
    if not found.well:
        raise typer.Exit(1)


def status_of(data_dir: Path) -> Status:
    """What runs in the folder. Raises `CommandError` if its files cannot be read."""
    where = str(data_dir.absolute())
    running = find_running(data_dir)
    if running is None:
        state = "not running" if holder(data_dir) is None else "starting or stopping"
        return Status(where, state, complaints=[f"`waybill up` is {state} in {where}"])
    facts = running.facts
    found = Status(where, "running", pid=running.pid, processes=list(_processes(facts)), addresses=_addresses(facts))
    found.versions = {"waybill": facts.version}
    found.complaints += [f"{one.name} has ended; it is being restarted" for one in found.processes if not one.running]
    found.complaints += _of_api(facts)
    with using_found(running):
        try:
            _look_into_database(found, len(facts.pids.workers))
        except CommandError as error:
            found.complaints.append(str(error))
    found.well = not found.complaints
    return found


def _processes(facts: Facts) -> Iterator[Process]:
    pids = facts.pids
    # Servers that it did not start are not its processes.
    ours = {"supervisor": pids.supervisor, "PostgreSQL": pids.postgres, "Redis": pids.redis, "API": pids.api}
    known = {name: pid for name, pid in ours.items() if pid is not None or name == "API"}
    known |= {f"worker {number}": pid for number, pid in enumerate(pids.workers, 1)}
    for name, pid in known.items():
        yield Process(name, pid, pid is not None and _lives(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _addresses(facts: Facts) -> dict[str, str]:
    given = {
        "API": facts.api_url,
        "documentation": facts.docs_url,
        "database": facts.database_url,
        "analytics": facts.analytics_url,
        "Redis": facts.redis_url,
    }
    return {
        name: make_url(address).set(password=None).render_as_string() if "@" in address else address
        for name, address in given.items()
        if address
    }


def _of_api(facts: Facts) -> list[str]:
    """What is wrong with the API."""
    try:
        # The user's proxy must not be used for the loopback address.
        reply = httpx2.get(f"{facts.api_url}/readyz", timeout=_PATIENCE, trust_env=False)
    except httpx2.HTTPError as error:
        return [f"the API does not answer: {error}"]
    if reply.is_success:
        return []
    try:
        states = {name: state for name, state in reply.json().items() if name != "ready"}
    except ValueError:
        states = {}
    return [f"the API is not ready: {', '.join(f'{name} {state}' for name, state in states.items()) or reply}"]


def _look_into_database(found: Status, workers: int) -> None:
    """Add what only the database knows. Raises `CommandError` if it cannot be read."""
    # Imported here: they load the domains, which are not needed if nothing runs.
    from services.operations import service as operations
    from services.outbox.control import service as control
    from services.unit_of_work import UnitOfWork

    async def look(uow: UnitOfWork) -> None:
        backlog = await operations.backlog(uow)
        found.waiting, found.retrying = backlog.waiting, backlog.retrying
        found.oldest_due_seconds, found.dead_letters = backlog.oldest_due_seconds, backlog.dead_letters
        live = await control.workers(uow)
        found.complaints += [f"worker {one.host} {one.pid}: {one.complaint}" for one in live if one.complaint]
        if len(live) < workers:
            found.complaints.append(f"{counted(workers - len(live), 'worker')} sent no heartbeat yet")
        audit = await uow.audits.latest()
        if audit is None:
            found.books_balanced = (await operations.books(uow)).balanced
        else:
            found.books_balanced, found.audited_at = audit.differences == 0, audit.started_at
        if not found.books_balanced:
            found.complaints.append("the books do not balance: run `waybill ledger audit`")
        connection = await uow.session.connection()
        found.versions["PostgreSQL"] = (await connection.execute(text("SHOW server_version"))).scalar_one()
        found.versions["workers"] = sorted({str(one.report.get("version")) for one in live})

    in_one(look)


def _show(found: Status) -> None:
    for complaint in found.complaints:
        typer.echo(complaint, err=True)
    if found.pid is None:
        return
    say(f"`waybill up` is running in {found.data_dir}" + ("." if found.well else ", but not everything is well."))
    say()
    show_table(["process", "pid", "state"], ([one.name, one.pid, _state(one)] for one in found.processes))
    say()
    show_table(["address", ""], found.addresses.items())
    say()
    versions = {**found.versions, "workers": ", ".join(found.versions.get("workers", []))}
    say("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if found.waiting is None:
        return
    oldest = f", the oldest for {lasting(found.oldest_due_seconds)}" if found.oldest_due_seconds else ""
    say(f"Events: {found.waiting} waiting{oldest}, {found.retrying} being retried, {found.dead_letters} dead letters")
    when = f"audited {ago(found.audited_at)}" if found.audited_at else "counted now"
    say(f"Books: {'balanced' if found.books_balanced else 'NOT balanced'} ({when})")


def _state(one: Process) -> str:
    return "running" if one.running else "ended"
