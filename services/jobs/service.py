"""Scheduled jobs: what operators see and do, and the complaints of the health check."""

from dataclasses import fields
from typing import Any

from services.acting import Action
from services.errors import NotFound
from services.jobs.schemas import JobState
from services.outbox.control.schemas import By
from services.unit_of_work import UnitOfWork

LATE = 60.0
"""Seconds that a job may be overdue. Workers claim it within seconds, or when a lost worker's lease has expired."""

FAILING = 2
"""The number of consecutive failed runs from which the health check reports the job."""

_TOLD = {field.name for field in fields(JobState)}


async def jobs(work: UnitOfWork) -> list[JobState]:
    """Every job, by name."""
    return [_state(dict(row)) for row in await work.jobs.states()]


async def job(work: UnitOfWork, name: str) -> JobState:
    """One job. Raises `NotFound`."""
    for one in await jobs(work):
        if one.name == name:
            return one
    raise _unknown(name)


async def run_now(work: UnitOfWork, name: str, by: By) -> None:
    """Have a worker run the job now, even if it is paused; once more if it is running. Raises `NotFound`."""
    if not await work.jobs.request(name, by.actor):
        raise _unknown(name)
    work.record_act(Action.job_requested, f"job/{name}", reason=by.reason, by=by.actor)


async def pause(work: UnitOfWork, name: str, by: By) -> None:
    """Stop starting the job on its schedule; a run that is under way continues. Raises `NotFound`."""
    if not await work.jobs.pause(name, by.actor, by.reason):
        raise _unknown(name)
    work.record_act(Action.job_paused, f"job/{name}", reason=by.reason, by=by.actor)


async def resume(work: UnitOfWork, name: str, by: By) -> None:
    """Run the job on its schedule again; once immediately if it is due. Raises `NotFound`."""
    if not await work.jobs.resume(name):
        raise _unknown(name)
    work.record_act(Action.job_resumed, f"job/{name}", reason=by.reason, by=by.actor)


def _state(row: dict[str, Any]) -> JobState:
    paused = row["paused_at"] is not None
    if row["running"]:
        state = "running"
    elif paused:
        state = "paused"
    else:
        state = "waiting" if row["known"] else "unknown"
    row["late_seconds"] = max(0.0, row["late_seconds"]) if state == "waiting" else 0.0
    row["worker_id"] = row["lease_owner"]
    return JobState(
        **{name: value for name, value in row.items() if name in _TOLD},
        state=state,
        complaint=_complaint(row, state, paused=paused),
    )


def _complaint(row: dict[str, Any], state: str, *, paused: bool) -> str | None:
    if state == "waiting" and row["late_seconds"] > LATE:
        return f"late by {row['late_seconds']:.0f} s: no worker has run it"
    if row["failed_in_a_row"] >= FAILING and row["known"] and not paused:
        return f"its last {row['failed_in_a_row']} runs failed: {row['error']}"
    return None


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no job {name!r}; `waybill jobs list` shows them all")
