"""What the workers are told of a job's row, and what operators are shown."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Seen:
    """A job's row as a worker's look finds it; `now` is the database's clock at that moment."""

    name: str
    schedule: str
    now: datetime
    due_at: datetime
    requested: bool
    paused: bool
    lease_until: datetime | None

    @property
    def wanted_at(self) -> datetime | None:
        """When somebody may take it; None where only a resumption or a request can tell."""
        if self.requested:
            due_at = self.now
        elif self.paused:
            return None
        else:
            due_at = self.due_at
        return due_at if self.lease_until is None else max(due_at, self.lease_until)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: well, unless there is an `error`. `seconds` is how long it took."""

    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as operators see it; `complaint` is what the health check says of it, None where it is well.

    `state` is `running`, `paused`, `waiting`, or `unknown` where workers are alive and none of them knows the job.
    `late_seconds` is for how long it could have run and has not: 0 while it runs, is paused or is not due.
    """

    name: str
    schedule: str
    state: str
    due_at: datetime
    late_seconds: float
    started_at: datetime | None
    finished_at: datetime | None
    ok: bool | None
    seconds: float | None
    error: str | None
    runs: int
    failures: int
    failed_in_a_row: int
    worker_id: UUID | None
    host: str | None
    pid: int | None
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    requested_at: datetime | None
    requested_by: str | None
    complaint: str | None
