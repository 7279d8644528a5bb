"""`waybill jobs`: list the scheduled jobs and their last runs; run one now, pause and resume."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from services.cli.console import plain_errors, say
from services.cli.run import Actor, AsJson, Reason, ago, in_one, lasting, show_json, show_table, who, with_dry_run
from services.jobs import service
from services.jobs.schemas import JobState
from services.outbox.control.schemas import By
from services.unit_of_work import UnitOfWork

jobs = typer.Typer(
    help="List and control the scheduled jobs. Exit codes: 0 done; 1 refused or not found; 2 wrong usage.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The job's name; `waybill jobs list` shows them.", max=100)]


@jobs.command("list")
def list_jobs(as_json: AsJson = False) -> None:
    """List the jobs: when each is due, its state, how late it is, and its last run."""
    with plain_errors():
        found = in_one(service.jobs)
        if as_json:
            show_json(found)
            return
        show_table(
            ["name", "schedule", "due", "state", "late", "last run", "took", "ended", "runs", "failed"],
            map(_line, found),
        )


@jobs.command()
@with_dry_run
def run(name: Name, actor: Actor = None, as_json: AsJson = False) -> None:
    """Run the job as soon as a worker is free, even if paused. Does not wait; `waybill jobs list` shows the outcome."""
    _change(
        name, lambda uow: service.run_now(uow, name, By(who(actor))), "will run as soon as a worker is free", as_json
    )


@jobs.command()
@with_dry_run
def pause(name: Name, actor: Actor = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """Stop starting the job on its schedule. A run that is under way continues."""
    _change(name, lambda uow: service.pause(uow, name, By(who(actor), reason)), "is paused", as_json)


@jobs.command()
@with_dry_run
def resume(name: Name, actor: Actor = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """Run the job on its schedule again. If it became due in the meantime, it runs once, immediately."""
    _change(name, lambda uow: service.resume(uow, name, By(who(actor), reason)), "is not paused", as_json)


def _change(name: str, change: Callable[[UnitOfWork], Awaitable[None]], done: str, as_json: bool) -> None:
    async def changed(uow: UnitOfWork) -> JobState:
        await change(uow)
        return await service.job(uow, name)

    with plain_errors():
        found = in_one(changed)
    if as_json:
        show_json(found)
    else:
        say(f"{name} {done}.")


def _line(one: JobState) -> list[object]:
    state = one.state
    if one.state == "paused":
        state = f"paused {ago(one.paused_at)} by {one.paused_by}"
        state += f": {one.paused_reason}" if one.paused_reason else ""
    elif one.state == "running" and one.pid is not None:
        state = f"running on {one.host} {one.pid}"
    if one.requested_at is not None:
        state += f", requested by {one.requested_by}"
    return [
        one.name,
        one.schedule,
        ago(one.due_at),
        state,
        lasting(one.late_seconds) if one.late_seconds else "",
        ago(one.started_at),
        lasting(one.seconds),
        {None: "", True: "ok", False: one.error}[one.ok],
        one.runs,
        one.failures,
    ]
