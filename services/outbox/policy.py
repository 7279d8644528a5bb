"""What happens to an event that fails: when it is tried again, and which events wait for it."""

import hashlib
import json
import random
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.exc import DBAPIError

from services.fields import made_storable
from services.logs import traceback_of
from services.outbox.events import Locked, Unprocessable
from services.outbox.models import FailureReason
from services.outbox.summary import kind_of, summary
from services.sql import CONTENTION, LOCK_NOT_AVAILABLE, sqlstate

_NOT_OF_A_ROW = ("08", "25006", "53", "57P", "58")
"""Beginnings of SQLSTATEs which mean that the server cannot work now; no row is to blame."""

_LONGEST_ERROR = 8000
_LONGEST_SUMMARY = 500


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter: 50 to 100 % of `base * 2**attempts` seconds, at most `cap`.

    After `max_attempts` attempts the event becomes a dead letter. An error of a type in `never` is not retried.
    """

    max_attempts: int
    base: float
    cap: float
    never: tuple[type[Exception], ...] = ()

    def delay(self, attempts: int) -> float:
        """The seconds to wait after this many failed attempts."""
        longest = min(self.cap, self.base * 2.0 ** min(attempts, 30))
        return random.uniform(0.5, 1.0) * longest  # noqa: S311

    def gives_up(self, error: Exception, attempts: int) -> bool:
        """Whether an event that has failed with this error, after this many attempts, becomes a dead letter."""
        return attempts >= self.max_attempts or isinstance(error, (Unprocessable, *self.never))


class OnDeath(StrEnum):
    """What a dead letter means for the later events of its aggregate."""

    block = "block"
    """They wait until it is replayed or discarded."""
    park_and_continue = "park_and_continue"
    """They are processed without it; if it is replayed, it takes effect after them."""


def is_locked(error: BaseException | None) -> bool:
    """Whether another transaction has locked what the event needs."""
    return isinstance(error, Locked) or (isinstance(error, DBAPIError) and sqlstate(error) == LOCK_NOT_AVAILABLE)


def is_transient(error: Exception) -> bool:
    """Whether no event of the batch is to blame: the connection was lost, or another transaction was in conflict."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or sqlstate(error) in CONTENTION


def is_contention(error: Exception) -> bool:
    """Whether another transaction has locked the rows or the table: the same may succeed later."""
    return isinstance(error, DBAPIError) and sqlstate(error) in CONTENTION | {LOCK_NOT_AVAILABLE}


def is_of_the_server(error: Exception) -> bool:
    """Whether the server cannot work now, whatever the rows are."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or (sqlstate(error) or "").startswith(_NOT_OF_A_ROW)


def describe(error: BaseException) -> str:
    """The traceback, with the summary of the error as its last line. If it is too long, its beginning is cut off."""
    said = made_storable(summary(error))
    try:
        text = made_storable(traceback_of(error))
    except BaseException:  # noqa: BLE001  (it runs the error's own code, which may raise anything)
        text = ""
    if not text.rstrip().endswith(said):
        text += said.partition("\n")[0][:_LONGEST_SUMMARY] + "\n"
    return text[-_LONGEST_ERROR:]


def fingerprint(error: BaseException) -> str:
    """16 hexadecimal digits, the same for errors of the same kind from the same place."""
    return hashlib.sha256("\n".join(kind_of(error)).encode("utf-8", "replace")).hexdigest()[:16]


def history_entry(error: BaseException, attempt: int, at: datetime, reason: FailureReason) -> str:
    """One entry of an event's history, as JSON."""
    said = made_storable(summary(error))[:_LONGEST_SUMMARY]
    entry = {
        "at": at.isoformat(),
        "attempt": attempt,
        "error": said,
        "fingerprint": fingerprint(error),
        "reason": reason.value,
    }
    return json.dumps(entry)
