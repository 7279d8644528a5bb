"""Where a worker looks for events: past the dead rows, and so that nobody's backlog starves the others."""

import random
from collections import Counter
from collections.abc import Sequence
from time import monotonic

from services.outbox.engine.schemas import ClaimedRow, Horizon, Span
from services.outbox.models import MAX_POSITION

_HEAD_SHARE = 0.75
"""Of a window that one aggregate fills: how much goes on looking at the head of the queue."""

_LEFT_FOR = 0.2
"""Seconds that the head of the queue is left to a sibling: what lies right behind its rows need not wait for longer."""

_MANY = 5_000
"""Dead rows that a claim reads over in about the time that a look at the server's locks takes."""


class Floor:
    """The lowest position at which a ready row may be. Claims start there, past the rows that are dead or wait.

    While another session holds a snapshot, processed rows stay in the index at the head of the queue, and a scan from
    the beginning reads them over and over. Skipping them must not skip a row that is still to come: a transaction takes
    its position before it commits. So the floor rises only over positions whose takers have ended. Each has its
    transaction id before it takes a position (`queries.APPEND`); hence, of a position that was taken before a
    claim, the taker's id is lower than the claim's own, and it has ended once all ids below that one have.

    A transaction that stays open, in whichever database of the server, would hold it up though it takes no position.
    Where many dead rows are behind it for that reason, it is `held_up`: then the takers themselves are asked for, whom
    the server knows by a lock.

    A row that waits is not ready again, and one that is locked by another worker is still to be seen: neither is passed
    over. What it knows is lost with the object; the first claim of a new one reads the dead rows once.
    """

    def __init__(self) -> None:
        self.position = 0
        self.last_taken = 0
        self._settling: tuple[int, int] | None = None
        self._behind = 0

    @property
    def held_up(self) -> bool:
        """Whether claims pass so many dead rows that it pays to ask for the `oldest_taker` before the next one."""
        return self._behind >= _MANY

    def rise(self, horizon: Horizon, oldest_taker: int = 0) -> None:
        """Take in what a claim's snapshot has shown. `oldest_taker` was asked for before that snapshot was taken."""
        if self._settling is not None:
            settled, transaction = self._settling
            if max(horizon.oldest_running, oldest_taker) >= transaction:
                ready = settled + 1 if horizon.first_ready is None else horizon.first_ready
                self.position = max(self.position, min(ready, settled + 1))
                self._settling = None
        if self._settling is None:
            # Taken before this claim began: its own id came later.
            self._settling = (self.last_taken, horizon.transaction)
        self.last_taken = horizon.last_taken
        first = self.last_taken + 1 if horizon.first_ready is None else horizon.first_ready
        self._behind = first - self.position


class Window:
    """How a claim's rows are shared among the event types, and among the aggregates of one.

    A type gets what the others leave: those with little to do keep an even share free, and those with a backlog divide
    the rest. Where one aggregate fills a window, a part of the next one is taken from a random place further on.

    `siblings` are the windows of all processors of a process, this one among them. While one works on an aggregate that
    fills its window, the others could only lock what comes after in that aggregate, and let it go again: for a moment
    they look further on, and leave it the head of the queue.
    """

    def __init__(self, types: Sequence[str], size: int, siblings: "list[Window] | None" = None) -> None:
        self._siblings = [] if siblings is None else siblings
        self._siblings.append(self)
        self._types = list(types)
        self._size = size
        self._ready: dict[str, int] = dict.fromkeys(types, size)
        self._due: dict[str, int] = dict.fromkeys(types, 0)
        self._crowded: dict[str, int] = {}
        """The last position of a window that one aggregate filled."""
        self._asked: dict[str, int] = {}
        """Ready rows that the latest claim wanted from the head of the queue, or from where it began."""
        self._began: float | None = None
        """When the transaction under way began, in seconds of the monotonic clock."""
        self._beside: set[str] = set()
        """Of the transaction under way: types whose head it leaves to a sibling."""

    def close(self) -> None:
        """Be no sibling any more."""
        self._siblings.remove(self)

    def settle(self) -> None:
        """The transaction of the latest claim has ended."""
        self._began = None
        self._beside.clear()

    def spans(self, floor: Floor) -> list[Span]:
        """What the next claim asks for; its transaction is under way from now on."""
        # Also of a batch that failed and is claimed anew.
        self._beside.clear()
        self._began = now = monotonic()
        others = [
            other
            for other in self._siblings
            if other is not self and other._began is not None and now - other._began < _LEFT_FOR
        ]
        even = max(1, self._size // len(self._types))
        idle = sum(found for found in self._found().values() if found < even)
        busy = [name for name, found in self._found().items() if found >= even]
        spans: list[Span] = []
        for name in self._types:
            share = max(even, (self._size - idle) // len(busy)) if name in busy else even
            due = share // 2 if self._ready[name] >= share else share
            ready = share - min(self._due[name], share // 2)
            of_type = self._split(name, floor, max(1, ready), max(1, due), others)
            self._asked[name] = of_type[0].ready
            spans += of_type
        return spans

    def whole(self, floor: Floor) -> list[Span]:
        """All that may be there, for a look that takes nothing."""
        return [Span(name, floor.position, MAX_POSITION, 1, 1) for name in self._types]

    def note(self, rows: Sequence[ClaimedRow]) -> bool:
        """Take in what a claim has found; whether another may find as much at once."""
        ready = Counter([row.type for row in rows if not row.waited])
        due = Counter([row.type for row in rows if row.waited])
        full = False
        for name in self._types:
            # What was looked at in two places, or from a random one, may have more elsewhere.
            full = full or (name in self._crowded and ready[name] > 0)
            full = full or ready[name] >= self._asked[name] or due[name] >= max(1, self._asked[name] // 2)
            self._ready[name], self._due[name] = ready[name], due[name]
            if name in self._beside:
                continue
            self._crowded.pop(name, None)
            if ready[name] >= max(2, self._asked[name]):
                mine = [row for row in rows if row.type == name and not row.waited][: self._asked[name]]
                ((_, most),) = Counter(row.aggregate for row in mine).most_common(1)
                if most > len(mine) // 2:
                    self._crowded[name] = mine[-1].position
        return full

    def _found(self) -> dict[str, int]:
        return {name: self._ready[name] + self._due[name] for name in self._types}

    def _working_on(self, name: str) -> int | None:
        """Of the transaction under way: the last position of the one aggregate that fills it, or is expected to."""
        return None if name in self._beside else self._crowded.get(name)

    def _split(self, name: str, floor: Floor, ready: int, due: int, others: "Sequence[Window]") -> list[Span]:
        """`others` are the siblings that have a transaction under way."""
        crowds = [crowd for other in others if (crowd := other._working_on(name)) is not None]
        if crowds and max(crowds) + 1 < floor.last_taken:
            self._beside.add(name)
            self._crowded[name] = max(crowds)
            return [Span(name, _further(max(crowds), floor), MAX_POSITION, ready, due)]
        last = self._crowded.get(name)
        if last is None or last + 1 >= floor.last_taken or ready < 2 or any(name in other._beside for other in others):
            return [Span(name, floor.position, MAX_POSITION, ready, due)]
        further = _further(last, floor)
        head = min(ready - 1, int(ready * _HEAD_SHARE))
        return [Span(name, floor.position, further, head, due), Span(name, further, MAX_POSITION, ready - head, 0)]


def _further(last: int, floor: Floor) -> int:
    """A random position after that one."""
    return random.randint(last + 1, floor.last_taken)  # noqa: S311
