"""Response schemas for sweeps."""

from datetime import datetime

from pydantic import BaseModel


class SweepFailurePublic(BaseModel):
    """A row that a sweep could not end. It is retried at `next_at`, and leaves the list once it has ended."""

    sweep: str
    subject: str
    attempts: int
    error: str
    first_at: datetime
    last_at: datetime
    next_at: datetime
