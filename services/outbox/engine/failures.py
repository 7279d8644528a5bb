"""What an event's failure means: whether the event is to blame, whether it counts, and when it is tried again."""

from sqlalchemy.exc import DBAPIError

from services.fields import now
from services.outbox.engine.repository import ClaimedRow
from services.outbox.engine.waiting import Failure
from services.outbox.events import NoHandler
from services.outbox.models import Waits
from services.outbox.policy import RetryPolicy, describe, fingerprint, history_entry
from services.outbox.subscription import Locked
from services.sql import CONTENTION, LOCK_NOT_AVAILABLE, sqlstate

_UNKNOWN_AGAIN = 30.0
"""Seconds after which a worker looks again at an event of a version that it does not know."""

_LOCKED_AGAIN = 2.0
"""Seconds after which an event is tried again that needs a locked row."""


def failure_of(row: ClaimedRow, error: Exception, policy: RetryPolicy, *, blocks: bool) -> Failure:
    """The failure to write. `policy` is that of its subscription, `blocks` whether a dead letter would block."""
    locked, unknown = is_locked(error), isinstance(error, NoHandler)
    delay = policy.delay(row.attempts)
    if locked:
        delay = _LOCKED_AGAIN
    elif unknown:
        delay = _UNKNOWN_AGAIN
    return Failure(
        position=row.position,
        aggregate=row.aggregate,
        error=describe(error),
        fingerprint=fingerprint(error),
        entry=None if locked else history_entry(error, row.attempts + 1, now()),
        delay=delay,
        waits=Waits.unknown if unknown else Waits.retry,
        counts=not (unknown or locked),
        blocks=blocks,
    )


def is_locked(error: BaseException | None) -> bool:
    """Whether another transaction has locked what the event needs."""
    return isinstance(error, Locked) or (isinstance(error, DBAPIError) and sqlstate(error) == LOCK_NOT_AVAILABLE)


def is_transient(error: Exception) -> bool:
    """Whether no event of the batch is to blame: the connection was lost, or another transaction was in the way."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or sqlstate(error) in CONTENTION
