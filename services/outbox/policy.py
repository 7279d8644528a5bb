"""What becomes of an event that fails: when it is tried again, and who waits for it."""

import hashlib
import json
import random
import traceback
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.exc import DBAPIError

from services.outbox.events import Locked, Unprocessable
from services.sql import CONTENTION, LOCK_NOT_AVAILABLE, sqlstate

_LONGEST_ERROR = 8000
_LONGEST_SUMMARY = 500


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff: half to all of `base * 2**attempts` seconds, up to `cap`, for `max_attempts` attempts.

    An error of a kind in `never` is final at the first attempt.
    """

    max_attempts: int
    base: float
    cap: float
    never: tuple[type[Exception], ...] = ()

    def delay(self, attempts: int) -> float:
        """Seconds to wait after this many failed attempts."""
        longest = min(self.cap, self.base * 2.0 ** min(attempts, 30))
        return random.uniform(0.5, 1.0) * longest  # noqa: S311

    def gives_up(self, error: Exception, attempts: int) -> bool:
        """Whether an event that failed with this, for so many attempts by now, is a dead letter."""
        return attempts >= self.max_attempts or isinstance(error, (Unprocessable, *self.never))


class OnDeath(StrEnum):
    """What a dead letter means for the later events of its aggregate."""

    block = "block"
    """They wait until it is replayed or discarded."""
    park_and_continue = "park_and_continue"
    """They go on without it; replayed, it takes effect after them."""


def is_locked(error: BaseException | None) -> bool:
    """Whether another transaction has locked what the event needs."""
    return isinstance(error, Locked) or (isinstance(error, DBAPIError) and sqlstate(error) == LOCK_NOT_AVAILABLE)


def is_transient(error: Exception) -> bool:
    """Whether no event of the batch is to blame: the connection was lost, or another transaction was in the way."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or sqlstate(error) in CONTENTION


def describe(error: BaseException) -> str:
    """The whole traceback, or the end of it, which says most."""
    text = "".join(traceback.format_exception(error))
    return _storable(text)[-_LONGEST_ERROR:]


def fingerprint(error: BaseException) -> str:
    """16 hexadecimal digits, equal for errors of one kind from the same place, whatever their messages say.

    Made of the type and of the functions that the error came through, not of line numbers: those change with every
    release.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    places = [f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}" for frame in frames]
    return hashlib.sha256("\n".join([type(error).__qualname__, *places]).encode()).hexdigest()[:16]


def history_entry(error: BaseException, attempt: int, at: datetime) -> str:
    """One line of an event's history, as JSON."""
    summary = _storable(f"{type(error).__qualname__}: {error}")[:_LONGEST_SUMMARY]
    entry = {"at": at.isoformat(), "attempt": attempt, "error": summary, "fingerprint": fingerprint(error)}
    return json.dumps(entry)


def _storable(text: str) -> str:
    # PostgreSQL's text cannot hold U+0000 or half of a surrogate pair.
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
