"""Workers: what each runs and how fast, and the jobs that run on a schedule."""

from typing import Annotated
from uuid import UUID

from fastapi import Form, Request, Response

from services.api.dependencies import Work
from services.api.rights import needs
from services.console.navigation import ROOT
from services.console.pages.forms import Reasoned, by
from services.console.rendering import redirect, render
from services.console.route import page_router
from services.console.staff import Staff
from services.jobs import service as jobs
from services.operations.outbox.schemas import Short
from services.outbox.control import service as control
from services.outbox.control.schemas import Asked
from services.users.rights import Scope

router = page_router()

WORKERS = f"{ROOT}/workers"


@router.get("/workers")
@needs(Scope.operations_read)
async def show_workers(request: Request, _: Staff, uow: Work) -> Response:
    """Each worker as it last reported itself, and each job with its last run."""
    values = {"workers": await control.workers(uow), "jobs": await jobs.jobs(uow)}
    return render(request, "workers.html", values)


class AskForm(Reasoned):
    """What a worker is asked to do."""

    wish: Asked


@router.post("/workers/{worker_id}/ask")
@needs(Scope.operations_write)
async def ask_here(
    worker_id: UUID, form: Annotated[AskForm, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Ask a worker to be quiet, to work again or to stop."""
    await control.ask(uow, worker_id, form.wish.wish, by(staff, form.reason))
    return redirect(request, WORKERS)


@router.post("/workers/jobs/{name}/run")
@needs(Scope.operations_write)
async def run_job_here(
    name: Short, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Have a worker run the job now."""
    await jobs.run_now(uow, name, by(staff, form.reason))
    return redirect(request, WORKERS)


@router.post("/workers/jobs/{name}/pause")
@needs(Scope.operations_write)
async def pause_job_here(
    name: Short, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Stop starting the job on its schedule."""
    await jobs.pause(uow, name, by(staff, form.reason))
    return redirect(request, WORKERS)


@router.post("/workers/jobs/{name}/resume")
@needs(Scope.operations_write)
async def resume_job_here(
    name: Short, form: Annotated[Reasoned, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Run the job on its schedule again."""
    await jobs.resume(uow, name, by(staff, form.reason))
    return redirect(request, WORKERS)
