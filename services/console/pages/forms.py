"""What the forms of several pages have in common."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from services.console.route import PageForm
from services.errors import Fault, InvalidInput
from services.fields import storable
from services.operations.outbox.schemas import Reason
from services.outbox.control.schemas import By
from services.outbox.events import shown_payload
from services.outbox.models import EventRow, FailureReason
from services.users.repository import SignedIn
from services.users.rights import Scope

Text = Annotated[str, Field(max_length=100), AfterValidator(storable)]

FAILURE_REASONS: Mapping[FailureReason, str] = {
    FailureReason.handler_error: "handler error",
    FailureReason.time_limit: "time limit",
    FailureReason.unreadable: "unreadable",
    FailureReason.unknown_version: "unknown version",
    FailureReason.worker_died: "killed the worker",
    FailureReason.bisected: "found by bisection",
    FailureReason.locked: "waited for a lock",
    FailureReason.buried: "buried before it failed",
}
"""In words, as the pages say them."""


class Reasoned(PageForm):
    """Why it is done, for the log of actions."""

    reason: Reason = ""


def by(staff: SignedIn, reason: str) -> By:
    """Who acts, as the API records it, too."""
    return By.user(staff.id, reason.strip())


def check_reason(reason: str, what: str) -> None:
    """Raises `InvalidInput` if the reason is empty. `what` needs one, such as `to bury an event`."""
    if not reason.strip():
        fault = Fault(f"a reason is required {what}", "#/reason")
        raise InvalidInput(fault.detail, [fault])


def payload_text(event: EventRow | None, staff: SignedIn) -> str | None:
    """The payload as indented JSON. Those who may not act on events do not see its personal fields."""
    if event is None:
        return None
    shown: Any = shown_payload(event.type, event.payload, whole=staff.may(Scope.operations_write))
    return json.dumps(shown, indent=2, ensure_ascii=False)


def moment(typed: str) -> datetime | str:
    """The time that a browser's field has, which is meant in UTC. What is not a time stays as it was typed."""
    try:
        at = datetime.fromisoformat(typed.strip())
    except ValueError:
        return typed.strip()
    return at if at.tzinfo else at.replace(tzinfo=UTC)
