"""Response schemas for sweeps."""

from services.fields import Schema
from services.sweeps.models import SweepFailureBase


class SweepFailurePublic(SweepFailureBase, Schema):
    """A row that a sweep could not end. It is retried at `next_at`, and leaves the list once it has ended."""
