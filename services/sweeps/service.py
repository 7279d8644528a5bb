"""Ends due rows, one transaction for each slice. A row that the database refuses does not stop the others."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError

from services.fields import made_storable
from services.logs import Shown
from services.outbox.policy import RetryPolicy, is_contention, is_of_the_server
from services.sweeps.repository import Failed
from services.transaction import SAVEPOINT_BUDGET
from services.unit_of_work import UnitOfWork

AGAIN = RetryPolicy(max_attempts=2**31, base=60.0, cap=3600.0)
"""The backoff of failed rows: at most a minute, then up to twice as long each time, up to an hour."""

LOCK_TIMEOUT = 1.0
"""Seconds to wait for a lock. Rows are locked with SKIP LOCKED; this is for other locks that a statement needs."""

_SHORT_LOCK_TIMEOUT = 0.1
"""The same, once this transaction has waited for a lock in vain."""

_LONGEST_ERROR = 2000


class Due(Protocol):
    """A row that is due, as an index has it. The next slice begins after the last one."""

    @property
    def subject(self) -> str:
        """Identifies the row within its sweep."""
        ...


DueT = TypeVar("DueT", bound=Due)


@dataclass(frozen=True, slots=True)
class Sweep(Generic[DueT]):
    """One kind of row that ends when it is due.

    `find` reads, without locking, up to a number of due rows that come after a given one, in the order of an index. Its
    cost must depend only on that number.

    `end` locks those of the rows that are not locked yet, ends the ones that are still due, and returns the subjects
    that it has ended. It uses only plain SQL.
    """

    name: str
    find: Callable[[UnitOfWork, DueT | None, int], Awaitable[Sequence[DueT]]]
    end: Callable[[UnitOfWork, Sequence[DueT]], Awaitable[Collection[str]]]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that could not be ended, and why. `attempts` counts this one."""

    subject: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Taken(Generic[DueT]):
    """The outcome of one slice. The next one begins after `last`; None means that nothing is left."""

    ended: int
    refused: Sequence[Refused]
    last: DueT | None


@dataclass(slots=True)
class _Slice(Generic[DueT]):
    ended: set[str] = field(default_factory=set)
    failed: list[tuple[DueT, Exception]] = field(default_factory=list)
    untried: list[DueT] = field(default_factory=list)
    """Rows for which the savepoints did not suffice: always the last ones of the slice."""
    savepoints: int = 0
    waited: bool = False


async def take_slice(uow: UnitOfWork, sweep: Sweep[DueT], after: DueT | None, limit: int) -> Taken[DueT]:
    """End up to `limit` rows that come after `after`; the caller commits.

    A slice that fails is split in halves, each in a savepoint, until the row at fault is isolated. That row is recorded
    in `sweep_failures` and left out until its next attempt. Locked rows are skipped, and have not failed. Raises
    `DBAPIError` if the server cannot work.
    """
    failures = uow.sweeps
    stale = await failures.begin(sweep.name, LOCK_TIMEOUT)
    found = await sweep.find(uow, after, limit)
    if not found:
        if stale:
            await failures.forget(sweep.name)
        return Taken(0, (), None)
    known = await failures.known(sweep.name, [due.subject for due in found])
    resting = {subject for subject, one in known.items() if one.rests}
    wanted: dict[str, DueT] = {}
    for due in found:
        if due.subject not in resting:
            wanted.setdefault(due.subject, due)
    done: _Slice[DueT] = _Slice()
    await _end(uow, sweep, list(wanted.values()), done)
    refused = [
        Refused(due.subject, _summary(error), known[due.subject].attempts + 1 if due.subject in known else 1)
        for due, error in done.failed
    ]
    if refused:
        await failures.keep(
            sweep.name, [Failed(one.subject, one.error, AGAIN.delay(one.attempts - 1)) for one in refused]
        )
    if healed := done.ended & known.keys():
        await failures.remove(sweep.name, healed)
    last = found[-1] if len(found) == limit else None
    if done.untried:
        # At least one row has been dealt with, so no slice begins twice at the same place.
        last = found[found.index(done.untried[0]) - 1]
    if last is None and stale:
        # The whole index has been read, so all failed rows that are still due have been found.
        await failures.forget(sweep.name)
    return Taken(len(done.ended), refused, last)


async def _end(uow: UnitOfWork, sweep: Sweep[DueT], rows: Sequence[DueT], done: _Slice[DueT]) -> None:
    if not rows:
        return
    if done.savepoints >= SAVEPOINT_BUDGET:
        done.untried += rows
        return
    done.savepoints += 1
    try:
        # Checks that would fail at the commit must fail here, where the bad row can be found.
        async with uow.savepoint(plain=True, check=True):
            ended = await sweep.end(uow, rows)
    except Exception as error:
        # Anything may refuse a row: a constraint, a trigger, one of our assertions.
        if is_of_the_server(error):
            raise
        locked = is_contention(error)
        if locked and not done.waited:
            # So that a long-held lock delays the transaction by a few seconds at most.
            done.waited = True
            await uow.sweeps.begin(sweep.name, _SHORT_LOCK_TIMEOUT)
        if len(rows) == 1:
            if not locked:
                done.failed.append((rows[0], error))
            return
        middle = len(rows) // 2
        await _end(uow, sweep, rows[:middle], done)
        await _end(uow, sweep, rows[middle:], done)
    else:
        done.ended.update(ended)


def _summary(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return made_storable(f"{type(cause).__name__}: {Shown(cause)}")[:_LONGEST_ERROR]
