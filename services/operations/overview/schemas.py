"""What the overview shows."""

from datetime import datetime
from enum import StrEnum

from services.fields import Schema


class Wakeups(StrEnum):
    """What has led workers to events during the last minutes."""

    doorbell = "doorbell"
    polling = "polling"
    """The doorbell does not ring, so that events wait up to a poll interval."""
    nothing = "nothing"
    """There were no events, or no workers."""


class Severity(StrEnum):
    """How urgent something is: `alarm` if events or credits are affected now."""

    alarm = "alarm"
    warning = "warning"


class Attention(Schema):
    """Something that an operator should look at, in words: what is wrong, and what to do."""

    severity: Severity
    text: str


class BooksState(Schema):
    """The last finished audit of the ledger and the stock. `balanced` is whether it found no difference."""

    balanced: bool
    differences: int
    rows_checked: int
    started_at: datetime
    seconds: float


class Overview(Schema):
    """How the service goes. Rates are events in a second, averages of the last minute; null if no worker was running.

    `queue_seconds` is the average time from when an event was recorded until the commit of its processing, and
    `batch_events` the average size of a batch. Counts of events stop at 10,000; `waiting_is_more` and
    `dead_letters_is_more` say that there are more. `oldest_due_seconds` is how long the most overdue event has been
    due. `books` is null if no audit has finished yet. `attention` is empty if nothing is wrong.
    """

    recorded: float | None
    processed: float | None
    failed: float | None
    queue_seconds: float | None
    batch_events: float | None
    waiting: int
    waiting_is_more: bool
    oldest_due_seconds: float
    dead_letters: int
    dead_letters_is_more: bool
    workers: int
    wakeups: Wakeups
    books: BooksState | None
    attention: list[Attention]
