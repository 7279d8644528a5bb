"""What happens to an event that fails: when it is tried again, and which events wait for it."""

import hashlib
import json
import random
import traceback
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.exc import DBAPIError

from services.logs import Shown
from services.outbox.events import Locked, Unprocessable
from services.sql import CONTENTION, LOCK_NOT_AVAILABLE, sqlstate

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


def describe(error: BaseException) -> str:
    """The traceback; only the end of it, which is the most useful part, if it is too long."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001  (it runs the error's own code, which may raise anything)
        text = f"{_kind(error)}: {Shown(error)}\n"
    return _storable(text)[-_LONGEST_ERROR:]


def fingerprint(error: BaseException) -> str:
    """16 hexadecimal digits, the same for errors of the same type from the same place, whatever their messages.

    Made from the error's type and the functions in its traceback, but not from line numbers, which change with every
    release.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    places = [f"{Shown(frame.f_globals.get('__name__'))}.{frame.f_code.co_qualname}" for frame in frames]
    return hashlib.sha256("\n".join([_kind(error), *places]).encode("utf-8", "replace")).hexdigest()[:16]


def history_entry(error: BaseException, attempt: int, at: datetime) -> str:
    """One entry of an event's history, as JSON."""
    summary = _storable(f"{_kind(error)}: {Shown(error)}")[:_LONGEST_SUMMARY]
    entry = {"at": at.isoformat(), "attempt": attempt, "error": summary, "fingerprint": fingerprint(error)}
    return json.dumps(entry)


def _kind(error: BaseException) -> str:
    return type(error).__qualname__


def _storable(text: str) -> str:
    # PostgreSQL's text cannot hold U+0000 or a lone surrogate.
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
