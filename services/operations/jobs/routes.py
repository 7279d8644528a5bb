"""HTTP routes for the jobs that run on a schedule."""

from typing import Annotated

from fastapi import APIRouter, Path

from services.api.dependencies import CurrentUser, Work
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.jobs import service
from services.jobs.schemas import JobState
from services.operations.outbox.schemas import Because, Short
from services.outbox.control.schemas import By
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

_ACT = responses(400, 401, 403, 404, 409, 422)
_ONCE = [IDEMPOTENCY_KEY_ACCEPTED]

Job = Annotated[Short, Path(description="The name of a job, such as `audit_ledger`.")]


@router.get("/jobs", responses=responses(401, 403))
@needs(Scope.operations_read)
async def list_jobs(_: CurrentUser, uow: Work) -> list[JobState]:
    """List the jobs that run on a schedule: when each is due, its state, and its last run."""
    return await service.jobs(uow)


@router.post("/jobs/{job}/run", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def run_job(job: Job, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Have a worker run the job now, even if it is paused."""
    await service.run_now(uow, job, By.user(user.id, wanted.reason))


@router.post("/jobs/{job}/pause", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def pause_job(job: Job, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Stop starting the job on its schedule. A run that is under way continues."""
    await service.pause(uow, job, By.user(user.id, wanted.reason))


@router.post("/jobs/{job}/resume", status_code=204, dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def resume_job(job: Job, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Run the job on its schedule again; once immediately if it became due meanwhile."""
    await service.resume(uow, job, By.user(user.id, wanted.reason))
