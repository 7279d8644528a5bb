"""`waybill workers`: which are running, what they did, and a health check."""

from typing import Annotated
from uuid import UUID

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.run import (
    Actor,
    AsJson,
    Reason,
    ago,
    in_one,
    lasting,
    show_json,
    show_table,
    who,
    with_dry_run,
)
from services.jobs import service as jobs
from services.outbox.control import service as control
from services.outbox.control.schemas import Asked, By, WorkerState
from services.outbox.log import service as log
from services.outbox.origin import service as origin
from services.unit_of_work import UnitOfWork

workers = typer.Typer(help="List and control the workers, and check their health.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(help="Only workers on this host.")]


@workers.command("list")
def list_workers(host: Host = None, as_json: AsJson = False) -> None:
    """List the worker processes, with what each reports about itself every five seconds."""
    with plain_errors():
        found = in_one(lambda uow: control.workers(uow, host))
        if as_json:
            show_json(found)
            return
        show_table(
            ["host", "pid", "started", "beat", "progress", "events", "/s", "failed", "types", "health"],
            map(_line, found),
        )


@workers.command()
def check(host: Host = None, as_json: AsJson = False) -> None:
    """Check the health of the workers, and of what belongs to all of them; print only what is wrong.

    Exit code 1 means that there is no worker; that a worker has sent no heartbeat for 20 seconds (it is gone, or its
    event loop is blocked), has made no progress for 30 seconds more than a batch may take, has failed in every batch
    for 30 seconds, has a wrong clock, or is of a newer release than the database; that a scheduled job is more than 60
    seconds late and not paused, or has failed twice in a row; that a consumer of the event log has failed twice in a
    row, or is run by no worker and more than two minutes behind; or that the database came from another cluster and has
    not been adapted. With --host, only workers are checked: the rest belongs to all of them, so restarting the worker
    of one host would not help.
    """
    with plain_errors():
        complaints = in_one(lambda uow: _complaints(uow, host))
        if as_json:
            show_json({"healthy": not complaints, "complaints": complaints})
        if complaints:
            raise CommandError("\n".join(complaints))


@workers.command()
@with_dry_run
def ask(
    worker: Annotated[UUID, typer.Argument(help="The worker's id: `waybill workers list --json` shows it.")],
    wish: Annotated[Asked, typer.Argument(help="Take nothing new, work again, or shut down.")],
    actor: Actor = None,
    reason: Reason = "",
) -> None:
    """Ask a worker to be quiet, to work again, or to stop. It obeys at its next heartbeat, within 5 seconds.

    A quiet worker finishes what has begun, and takes no more events, jobs, bulk actions and consumers. A restart ends
    that.
    """
    with plain_errors():
        in_one(lambda uow: control.ask(uow, worker, wish.wish, By(who(actor), reason)))
    say(f"Worker {worker} is asked to {'be quiet' if wish is Asked.quiet else wish.value}.")


async def _complaints(uow: UnitOfWork, host: str | None) -> list[str]:
    found = await control.workers(uow, host)
    complaints = [f"{one.host} {one.pid}: {one.complaint}" for one in found if one.complaint is not None]
    if not found:
        complaints = [f"no worker on {host}" if host else "no worker"]
    if host:
        return complaints
    of_log = await origin.complaint_of_reads(await uow.session.connection())
    complaints += [] if of_log is None else [of_log]
    complaints += [f"job {one.name}: {one.complaint}" for one in await jobs.jobs(uow) if one.complaint]
    complaints += [f"log consumer {one.name}: {one.complaint}" for one in await log.lags(uow) if one.complaint]
    return complaints


def _line(one: WorkerState) -> list[object]:
    report = one.report
    return [
        one.host,
        one.pid,
        ago(one.started_at),
        lasting(one.silent_seconds),
        lasting(one.stuck_seconds),
        report.get("processed"),
        report.get("rates", {}).get("processed"),
        (report.get("retried") or 0) + (report.get("buried") or 0),
        ", ".join(report.get("types", [])),
        one.complaint or "ok",
    ]
