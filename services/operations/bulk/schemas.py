"""Request and response schemas for bulk actions."""

from typing import Annotated

from pydantic import Field

from services.fields import Instant, RequestBody, Schema
from services.operations.outbox.schemas import Reason, Short
from services.outbox.bulk.models import BulkActionBase, BulkKind
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.models import FailureReason, Waits


class BulkActionPublic(BulkActionBase, Schema):
    """A bulk action and its progress."""


class BulkActionCreate(RequestBody):
    """What to do to which events: those that match all given fields.

    `died_from`, `died_before` and `failure_reason` are for dead letters, `waits` for events that wait. Without any
    field, `everything` must be true. A reason is required.
    """

    action: BulkKind
    type: Short | None = None
    aggregate: Short | None = None
    fingerprint: Short | None = None
    died_from: Instant | None = None
    died_before: Instant | None = None
    waits: Waits | None = None
    failure_reason: FailureReason | None = None
    everything: bool = False
    reason: Annotated[Reason, Field(min_length=1, pattern=r"\S")]

    def filter(self) -> BulkFilter:
        return BulkFilter(
            self.type,
            self.aggregate,
            self.fingerprint,
            self.died_from,
            self.died_before,
            self.waits,
            self.failure_reason,
        )
