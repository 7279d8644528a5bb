"""A job's row as workers and operators see it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Seen:
    """A job's row as a worker finds it; `now` is the database's time at that moment."""

    name: str
    schedule: str
    now: datetime
    due_at: datetime
    requested: bool
    paused: bool
    lease_until: datetime | None

    @property
    def wanted_at(self) -> datetime | None:
        """When a worker may claim it; None if it must first be resumed or requested."""
        if self.requested:
            due_at = self.now
        elif self.paused:
            return None
        else:
            due_at = self.due_at
        return due_at if self.lease_until is None else max(due_at, self.lease_until)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that a worker has claimed, at the database's time `at`. The last `failed` runs in a row have failed."""

    failed: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: successfully unless there is an `error`. `seconds` is how long it took."""

    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as operators see it; `complaint` is what the health check reports about it, None if it is healthy.

    `state` is `running`, `paused`, `waiting`, or `unknown` if workers are alive but none of them knows the job.
    `late_seconds` is how long the job has been waiting to run: 0 while it runs, is paused or is not due.
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
