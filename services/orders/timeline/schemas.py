"""What operators see of an order's history."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from services.fields import Money, Schema
from services.orders.schemas import OrderSummary

EACH = 200
"""The most entries of each kind in a timeline."""


class EntryKind(StrEnum):
    """What an entry of a timeline is about. Entries of the same moment are shown in this order."""

    request = "request"
    transition = "transition"
    refund = "refund"
    hold = "hold"
    entry = "entry"
    movement = "movement"
    event = "event"
    failure = "failure"
    action = "action"


class TimelineEntry(Schema):
    """One thing that happened to an order.

    `what` says it in words, `subject` is what it is about, such as `transfer/ID`. `state` is that of an event
    (`processed`, `logged` if no worker processes its type, `discarded`, or why it waits), of a hold, or the status of a
    reply. `error` is the last line of an error.
    """

    at: datetime
    kind: EntryKind
    what: str
    subject: str | None = None
    actor: str | None = None
    reason: str = ""
    state: str | None = None
    amount: Money | None = None
    error: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


class Timeline(Schema):
    """An order and what happened to it, oldest first.

    `hidden` are the kinds that the caller may not see, `cut` those of which only the first ones are shown. `not_found`
    are the events that the log must once have had: it has dropped their month, or so many events were written around
    that time that not all of them were looked at.
    """

    order: OrderSummary
    entries: list[TimelineEntry]
    hidden: list[EntryKind]
    cut: list[EntryKind]
    not_found: Annotated[list[str], Field(description="Types of events.")]


class Expected(Schema):
    """An event that must have been written at about this time."""

    type: str
    at: datetime


class FoundEvent(Schema):
    """An event of the log."""

    id: UUID
    type: str
    version: int
    occurred_at: datetime
    request_id: str | None
    traceparent: str | None
    actor: str | None
