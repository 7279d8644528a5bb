"""Workers: what each runs and how fast, and the jobs that run on a schedule."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import Form, Path, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import Field

from services.api.dependencies import Work
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.rendering import address, render
from services.console.route import PageForm, page_router
from services.console.staff import Staff
from services.fields import made_storable
from services.jobs import service as jobs
from services.outbox.control import service as control
from services.outbox.control.service import By
from services.outbox.models import WorkerWish
from services.users.repository import SignedIn
from services.users.rights import Scope

router = page_router()

WORKERS = f"{ROOT}/workers"


class Wish(StrEnum):
    """What a worker is asked to do: to take nothing new, to work again, or to shut down."""

    quiet = "quiet"
    work = "work"
    stop = "stop"


Name = Annotated[str, Path(min_length=1, max_length=100)]


class Reasoned(PageForm):
    """Why it is done; for the log of actions."""

    reason: str = Field(default="", max_length=500)


@router.get("/workers")
@needs(Scope.operations_read)
async def show_workers(request: Request, _: Staff, uow: Work) -> Response:
    """Each worker as it last reported itself, and each job with its last run."""
    values = {"workers": await control.workers(uow), "jobs": await jobs.jobs(uow)}
    return render(request, "workers.html", values)


class AskForm(Reasoned):
    """What a worker is asked to do."""

    wish: Wish


@router.post("/workers/{worker_id}/ask")
@needs(Scope.operations_write)
async def ask_here(
    worker_id: UUID, form: Annotated[AskForm, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Ask a worker to be quiet, to work again or to stop."""
    wish = None if form.wish is Wish.work else WorkerWish(form.wish.value)
    await control.ask(uow, worker_id, wish, _by(staff, form))
    return RedirectResponse(address(request, WORKERS), status_code=303)


@router.post("/workers/jobs/{name}/run")
@needs(Scope.operations_write)
async def run_job_here(
    name: Name, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Have a worker run the job now."""
    await jobs.run_now(uow, name, _by(staff, form))
    return RedirectResponse(address(request, WORKERS), status_code=303)


@router.post("/workers/jobs/{name}/pause")
@needs(Scope.operations_write)
async def pause_job_here(
    name: Name, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Stop starting the job on its schedule."""
    await jobs.pause(uow, name, _by(staff, form))
    return RedirectResponse(address(request, WORKERS), status_code=303)


@router.post("/workers/jobs/{name}/resume")
@needs(Scope.operations_write)
async def resume_job_here(
    name: Name, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Run the job on its schedule again."""
    await jobs.resume(uow, name, _by(staff, form))
    return RedirectResponse(address(request, WORKERS), status_code=303)


def _by(staff: SignedIn, form: Reasoned) -> By:
    return By(f"user/{staff.id}", made_storable(form.reason.strip()))
