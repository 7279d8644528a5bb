"""Request and response schemas for the outbox."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from services.fields import Instant, RequestBody, Schema, StrictId, storable
from services.outbox.control.schemas import Selection
from services.outbox.events import shown_payload
from services.outbox.inspection.schemas import Group
from services.outbox.models import DeadLetter, DeadLetterBase, EventRow, FailureReason

Short = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(storable)]
Reason = Annotated[str, Field(max_length=500), AfterValidator(storable)]


class DeferredPublic(Schema):
    """A deferred event; it becomes available at `available_at`."""

    position: int
    event_id: UUID
    aggregate: str
    type: str
    available_at: datetime


class DeadLetterPublic(DeadLetterBase, Schema):
    """A dead letter: an event that is no longer attempted."""


class DeadLetterDetail(DeadLetterBase, Schema):
    """A dead letter with its history and its event; `version` to `payload` are null if the log no longer has it."""

    fingerprint: str
    failures: list[dict[str, Any]]
    blocks: bool
    version: int | None
    occurred_at: datetime | None
    request_id: str | None
    actor: str | None
    payload: dict[str, Any] | None

    @classmethod
    def of(cls, letter: DeadLetter, event: EventRow | None, *, whole: bool) -> "DeadLetterDetail":
        """Unless `whole`, the values of the payload's personal fields are left out."""
        logged = ("version", "occurred_at", "request_id", "actor")
        update = {name: None if event is None else getattr(event, name) for name in logged}
        payload = None if event is None else shown_payload(event.type, event.payload, whole=whole)
        return cls.model_validate(letter, update={**update, "payload": payload})


class GroupDetail(Schema):
    """A group of dead letters, with its latest letter as a sample."""

    group: Group
    sample: DeadLetterDetail


class Because(RequestBody):
    """The reason for an action, which is recorded with it."""

    reason: Reason = ""


class LimitChange(Because):
    """The maximum number of transactions that process the type at the same time; null means no limit."""

    max_batches: Annotated[int, Field(strict=True, ge=1, le=1000)] | None


class LettersWanted(Because):
    """Which dead letters: those that match all given fields. `after` continues after a position."""

    position: StrictId | None = None
    event_id: UUID | None = None
    type: Short | None = None
    aggregate: Short | None = None
    fingerprint: Short | None = None
    died_from: Instant | None = None
    died_before: Instant | None = None
    failure_reason: FailureReason | None = None
    positions: Annotated[list[StrictId] | None, Field(min_length=1, max_length=200)] = None
    after: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0
    limit: Annotated[int, Field(strict=True, ge=1, le=500)] = 500
    dry_run: bool = False

    def selection(self) -> Selection:
        return Selection(
            self.position,
            self.event_id,
            self.type,
            self.aggregate,
            self.fingerprint,
            self.died_from,
            self.died_before,
            self.failure_reason,
            self.positions,
        )
