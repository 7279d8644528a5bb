"""Workers: who is there, what they did, and a health check."""

from typing import Annotated

import typer

from services.cli.console import CommandError, plain_errors
from services.cli.outbox.run import AsJson, ago, in_one, lasting, show_json, show_table
from services.outbox import control
from services.outbox.control import WorkerState


def workers(
    host: Annotated[str | None, typer.Option(help="Of this host only.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 1 where there is no worker, or one is silent, stuck or has a wrong clock; print nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the worker processes, by what each says of itself every five seconds.

    With --check, exit code 1 says that there is no worker, or that one has given no beat for 20 seconds (gone, or its
    event loop is blocked), has made no progress for 30 seconds more than a batch may take, or has a wrong clock.
    """
    with plain_errors():
        found = in_one(lambda uow: control.workers(uow, host))
        if as_json:
            show_json(found)
        elif not check:
            show_table(
                ["host", "pid", "started", "beat", "progress", "events", "/s", "failed", "types", "health"],
                map(_line, found),
            )
        if check:
            _check(found, host)


def _check(found: list[WorkerState], host: str | None) -> None:
    complaints = [f"{one.host} {one.pid}: {one.complaint}" for one in found if one.complaint is not None]
    if not found:
        complaints = [f"no worker on {host}" if host else "no worker"]
    if complaints:
        raise CommandError("\n".join(complaints))


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
        one.complaint or "well",
    ]
