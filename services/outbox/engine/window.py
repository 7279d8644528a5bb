"""Where a worker looks for events, and which of those that it finds one transaction processes.

It looks past the dead rows, and does not let one backlog starve the others.
"""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic

from services.outbox.engine.schemas import ClaimedRow, Horizon, Kind, Part, Span
from services.outbox.models import MAX_POSITION

logger = logging.getLogger(__name__)

_FULL_LOOK = 60.0
"""Seconds after which a claim or a look starts from the beginning again."""

_HEAD_SHARE = 0.75
"""If one aggregate fills a window: the share of the next window that is still taken from the head of the queue."""

_LEFT_FOR = 0.2
"""Seconds that the head of the queue is left to a sibling: the rows right behind its own must not wait longer."""

_BACKENDS = 1_000
"""The most server processes that a floor remembers. If there are more, it forgets all, and looks more often."""

_MANY = 5_000
"""The number of dead rows that a claim reads in about the time it takes to read the server's locks."""

_ALL = 2**31

_IDEAL_SHARE = 0.5
"""The share of its time limit that a handler should need."""

_STEP = 8
"""The factor by which the number of events may grow after a call that took little time."""

_UNLIMITED = 10_000
"""More events than one claim takes."""

_STANDSTILL = 0.5
"""Seconds after which an event that is blocked begins to wait."""

_LONGEST_STANDSTILL = 60.0
"""The most seconds until a blocked event is looked at again."""

_REMEMBERED_BLOCKED = 100_000
"""The most blocked events that are remembered."""

_LOSSES = 5
"""How many lost transactions of a single event count as one failed attempt."""

_REMEMBERED = 1_000
"""The most events whose losses are remembered."""


class Floor:
    """The lowest position at which there may be a ready row. Claims start there, past the dead and waiting rows.

    While another session holds a snapshot, processed rows stay in the index at the head of the queue, and a scan from
    the beginning reads them over and over. Skipping them must not skip a row that has yet to appear: a transaction
    takes its position before it commits. So the floor rises only over positions whose takers (the transactions that
    took them) have ended. A taker gets its transaction id before its position (`recording/queries.py`). So if a
    position was taken before a claim, its taker's id is lower than the claim's, and it has ended once all lower ids
    have.

    A transaction that stays open, in any database of the server, would hold the floor up even if it takes no position.
    If that leaves many dead rows above the floor, it is `held_up`: the server is then asked for the takers themselves,
    which it knows by a lock.

    No ready row is skipped: a waiting row never becomes ready again, and a row that another worker has locked is still
    visible. The floor is lost with the object; the first claim of a new one reads the dead rows once.

    This holds for one server that only moves forward. After a restore, a failover or a promotion, positions and
    transaction ids may continue from lower numbers. So at least once a minute, and after every new connection, a claim
    or a look starts from the beginning. If it finds a ready row below the floor, the floor starts again from there.
    """

    def __init__(self) -> None:
        self.position = 0
        """Where the next claim starts."""
        self.last_taken = 0
        self.any_ready = True
        """Whether the latest look or claim found an event that is ready, of whatever type; at first, it may be."""
        self._proven = 0
        """The floor. `position` is lower while a claim looks from the beginning."""
        self._settling: tuple[int, int] | None = None
        self._behind = 0
        self._began = 0.0
        self._full_at = 0.0
        """When to look from the beginning again, in seconds of the monotonic clock."""
        self._backends: set[int] = set()
        """The server processes of the connections that were used so far."""

    @property
    def held_up(self) -> bool:
        """Whether claims read so many dead rows that it pays to ask for the `oldest_taker` before the next one."""
        return self._behind >= _MANY

    @property
    def is_due(self) -> bool:
        """Whether to look from the beginning."""
        return monotonic() >= self._full_at

    def begin(self) -> None:
        """A claim begins. It starts at `position`."""
        self._began = monotonic()
        if self.is_due:
            self.position = 0

    def looked(self, at: float) -> None:
        """A look from the beginning, at this time of the monotonic clock, found no ready row."""
        self._full_at = at + _FULL_LOOK

    def distrust(self) -> None:
        """Have the next claim start from the beginning."""
        self._full_at = 0.0

    def is_new(self, backend: int) -> bool:
        """Whether this server process, and with it the connection, has not been used before."""
        if backend in self._backends:
            return False
        if len(self._backends) >= _BACKENDS:
            self._backends.clear()
        self._backends.add(backend)
        return True

    def rise(self, horizon: Horizon, oldest_taker: int = 0) -> bool:
        """Update the floor from a claim's snapshot. `oldest_taker` was read before that snapshot was taken.

        Returns whether the next claim must follow immediately, because it starts from the beginning.
        """
        full = self.position == 0
        fell = self._fell(horizon, full=full)
        again = (self.is_new(horizon.backend) or fell) and not full
        if fell:
            logger.warning("the outbox's positions or transaction ids were set back; looking from the beginning")
            self._proven = self.last_taken = 0
            self._settling = None
        if full:
            self.looked(self._began)
        elif again:
            self.distrust()
        if self._settling is not None:
            settled, transaction = self._settling
            if max(horizon.oldest_running, oldest_taker) >= transaction:
                ready = settled + 1 if horizon.first_ready is None else horizon.first_ready
                self._proven = max(self._proven, min(ready, settled + 1))
                self._settling = None
        if self._settling is None:
            # These positions were taken before this claim began: its own id came later.
            self._settling = (self.last_taken, horizon.transaction)
        self.last_taken = horizon.last_taken
        self.any_ready = horizon.first_ready is not None
        self.position = self._proven
        first = self.last_taken + 1 if horizon.first_ready is None else horizon.first_ready
        self._behind = first - self.position
        return again

    def _fell(self, horizon: Horizon, *, full: bool) -> bool:
        """Whether the server is not the one, or not in the state, for which the floor was proven."""
        below = full and horizon.first_ready is not None and horizon.first_ready < self._proven
        earlier = self._settling is not None and horizon.transaction < self._settling[1]
        return below or earlier or horizon.last_taken < self.last_taken


class Window:
    """How a claim's rows are divided among the event types, and among the aggregates of each type.

    A type gets what the others leave: an even share stays reserved for each type with little to do, and the types with
    a backlog divide the rest. If one aggregate fills a window, part of the next window starts at a random position
    further on.

    `types` maps each type to the highest version that this release knows. `siblings` are the windows of all processors
    of the process, including this one. While one of them works on an aggregate that fills its window, the others could
    only lock later rows of that aggregate and release them again. So for a moment they leave the head of the queue to
    that one, and look further on.
    """

    def __init__(
        self, types: Mapping[str, int], size: int, siblings: "list[Window] | None" = None, pace: "Pace | None" = None
    ) -> None:
        self._siblings = [] if siblings is None else siblings
        self._siblings.append(self)
        self._pace = pace or Pace()
        self._types = types
        self._size = size
        self._ready: dict[str, int] = dict.fromkeys(types, size)
        self._due: dict[str, int] = dict.fromkeys(types, 0)
        self._crowded: dict[str, int] = {}
        """The last position of a window that one aggregate filled."""
        self._asked: dict[str, int] = {}
        """How many ready rows the latest claim asked for at the head of the queue, or where it started."""
        self._further: dict[str, int] = {}
        """Where the latest claim looked further on: the rows before that position may not have been reached yet."""
        self._began: float | None = None
        """When the current transaction began, in seconds of the monotonic clock; None if there is none."""
        self._beside: set[str] = set()
        """The types for which the current transaction leaves the head of the queue to a sibling."""

    def close(self) -> None:
        """Leave the group of siblings."""
        self._siblings.remove(self)

    def settle(self) -> None:
        """Note that the transaction of the latest claim has ended."""
        self._began = None
        self._beside.clear()

    def spans(self, floor: Floor) -> list[Span]:
        """The spans for the next claim, whose transaction counts as running from now on."""
        # A batch that failed and is claimed again gets here without `settle`.
        self._beside.clear()
        self._further.clear()
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
            most = self._pace.most(name)
            of_type = self._split(name, floor, min(max(1, ready), most), min(max(1, due), most), others)
            self._asked[name] = of_type[0].ready
            if of_type[-1].first > floor.position:
                self._further[name] = of_type[-1].first
            spans += of_type
        return spans

    def whole(self, first: int) -> list[Span]:
        """Spans that cover everything from `first` on, for a look that claims nothing."""
        return [Span(name, first, MAX_POSITION, 1, 1, version) for name, version in self._types.items()]

    def note(self, rows: Sequence[ClaimedRow]) -> bool:
        """Record what a claim has found; return whether another claim may find as much immediately."""
        ready = Counter([row.type for row in rows if not row.waited])
        due = Counter([row.type for row in rows if row.waited])
        full = False
        for name in self._types:
            # A type that was scanned in two places, or from a random position, may have more rows elsewhere.
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

    def reached(self, rows: Sequence[ClaimedRow]) -> Sequence[ClaimedRow]:
        """Those of the latest claim's rows that it found at the head of the queue, or that have waited.

        A row further on may be blocked only because the claims have not come to its aggregate's earlier rows.
        """
        if not self._further:
            return rows
        return [row for row in rows if row.waited or row.position < self._further.get(row.type, MAX_POSITION)]

    def _found(self) -> dict[str, int]:
        return {name: self._ready[name] + self._due[name] for name in self._types}

    def _working_on(self, name: str) -> int | None:
        """The last position of the one aggregate that fills the current transaction, or is expected to; or None."""
        return None if name in self._beside else self._crowded.get(name)

    def _split(self, name: str, floor: Floor, ready: int, due: int, others: "Sequence[Window]") -> list[Span]:
        """The spans for one type. `others` are the siblings with a running transaction."""
        crowds = [crowd for other in others if (crowd := other._working_on(name)) is not None]
        version = self._types[name]
        if crowds and max(crowds) + 1 < floor.last_taken:
            self._beside.add(name)
            self._crowded[name] = max(crowds)
            return [Span(name, _further(max(crowds), floor), MAX_POSITION, ready, due, version)]
        last = self._crowded.get(name)
        if last is None or last + 1 >= floor.last_taken or ready < 2 or any(name in other._beside for other in others):
            return [Span(name, floor.position, MAX_POSITION, ready, due, version)]
        further = _further(last, floor)
        head = min(ready - 1, int(ready * _HEAD_SHARE))
        return [
            Span(name, floor.position, further, head, due, version),
            Span(name, further, MAX_POSITION, ready - head, 0, version),
        ]


def _further(last: int, floor: Floor) -> int:
    """A random position after `last`."""
    return random.randint(last + 1, floor.last_taken)  # noqa: S311


class Pace:
    """How many events of a type a handler gets in one call, so that it finishes well within its time limit.

    The number is halved when a call takes too long, or when a transaction has too few savepoints to find any of the
    events that fail. Otherwise it follows from the duration of each call, so that the next one takes half the limit.
    The processors of a process share it, so that not each of them has to find it out.
    """

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def most(self, name: str) -> int:
        """The most events of this type in one call."""
        return self._most.get(name, _ALL)

    def halve(self, name: str, events: int) -> None:
        """A call with this many events was too much."""
        self._most[name] = max(1, min(events, self.most(name)) // 2)

    def finished(self, name: str, events: int, share: float) -> None:
        """A call with this many events took this share of its time limit."""
        if share <= _IDEAL_SHARE and (name not in self._most or events < self._most[name]):
            return
        self._most[name] = most = max(1, min(int(events * _IDEAL_SHARE / max(share, 1e-6)), _STEP * events))
        if most >= _UNLIMITED:
            del self._most[name]


class Standstill:
    """Finds events that have been blocked for long, and says when a claim should look at them again.

    Usually, another worker's transaction is processing the earlier event and ends in a moment. But that event may be of
    a type that is paused or limited, or of a version that only workers of the next release know. The events that it
    blocks would then be claimed over and over, and if they were more than a claim takes, they would hide all others. So
    they wait as long as they have been blocked so far, which doubles that time.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def overdue(self, rows: Sequence[ClaimedRow]) -> dict[int, float]:
        """The rows of a claim that have been blocked for long: for each position, how many seconds to wait."""
        now = monotonic()
        if len(self._since) > _REMEMBERED_BLOCKED:
            self._since.clear()
        waits = {}
        for row in rows:
            if row.blocked and not row.parks:
                blocked = now - self._since.setdefault(row.position, now)
                if blocked >= _STANDSTILL:
                    waits[row.position] = min(blocked, _LONGEST_STANDSTILL) * random.uniform(0.75, 1.25)  # noqa: S311
            elif self._since:
                self._since.pop(row.position, None)
        return waits


class Portion:
    """How many of a claim's events a transaction takes, so that an event that costs each one its connection is found.

    A lost connection or a deadlock blames no event (`is_transient`), and the transaction is tried again. But if it was
    lost while its handlers ran, one of its events may be the cause, for example by a statement that crashes its server
    process. So the next transaction takes half as many, down to a single event; after each commit, it may take twice as
    many. If an event on its own loses `_LOSSES` transactions, that counts as one attempt.

    An outage buries no event: the claim has to succeed first, and what is lost in a claim or a commit does not count.
    """

    def __init__(self) -> None:
        self._most = _ALL
        self._taken: Sequence[ClaimedRow] = ()
        self._losses: Counter[int] = Counter()
        self._blamed: dict[tuple[int, int], Exception] = {}
        """Errors that count as the next attempt, by position and the attempts before it."""

    def claimed(self, rows: Sequence[ClaimedRow]) -> None:
        """Blame no event any more that the latest claim did not find as it was: another worker has tried it since."""
        if self._blamed:
            found = {(row.position, row.attempts) for row in rows}
            self._blamed = {key: error for key, error in self._blamed.items() if key in found}

    def of(self, rows: Sequence[ClaimedRow]) -> Sequence[ClaimedRow]:
        """The first of these rows, in order of their positions: those that the transaction takes."""
        self._taken = rows[: self._most]
        return self._taken

    def lost(self, error: Exception) -> None:
        """The transaction was lost with this error while its handlers ran."""
        self._most = max(1, len(self._taken) // 2)
        if len(self._taken) != 1:
            return
        if len(self._losses) >= _REMEMBERED:
            self._losses.clear()
            self._blamed.clear()
        (row,) = self._taken
        self._losses[row.position] += 1
        if self._losses[row.position] >= _LOSSES:
            self.blame(row, error)

    def blame(self, row: ClaimedRow, error: Exception) -> None:
        """Count this error as the event's next attempt, without running the handler, if the next claim finds it."""
        self._blamed[row.position, row.attempts] = error

    def committed(self) -> None:
        """The transaction was committed."""
        if self._taken:
            self._most = min(_ALL, 2 * self._most)
        for row in self._taken if self._losses or self._blamed else ():
            self._losses.pop(row.position, None)
            self._blamed.pop((row.position, row.attempts), None)

    def error_of(self, row: ClaimedRow) -> Exception | None:
        """The error to count as an attempt, without running the handler; None if the event is not to blame."""
        return self._blamed.get((row.position, row.attempts))


def parts_of(rows: Sequence[ClaimedRow]) -> list[Part]:
    """Rows in parts of one kind each, in an order that keeps that of each aggregate.

    The kinds take turns, in a random order: a type whose handler is slow or fails must not always come before the
    others. A row gets the first turn of its kind that is not before the turn of its aggregate's previous row.
    """
    # Not as `Kind`, which takes several times as long to make, and is equal to such a pair.
    found = dict.fromkeys((row.type, row.attempts > 0) for row in rows)
    kinds = [Kind(*pair) for pair in found]
    if len(kinds) == 1:
        return [(kinds[0], list(rows))]
    random.shuffle(kinds)
    first: dict[tuple[str, bool], int] = {kind: turn for turn, kind in enumerate(kinds)}
    parts: dict[int, list[ClaimedRow]] = {}
    reached: dict[str, int] = {}
    for row in rows:
        turn = first[row.type, row.attempts > 0]
        before = reached.get(row.aggregate, turn)
        reached[row.aggregate] = turn = before + (turn - before) % len(kinds)
        parts.setdefault(turn, []).append(row)
    return [(kinds[turn % len(kinds)], parts[turn]) for turn in sorted(parts)]
