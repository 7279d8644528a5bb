"""Which of a claim's rows one transaction processes, and in which order."""

from collections import Counter
from collections.abc import Mapping, Sequence

from services.outbox.engine.schemas import ClaimedRow

_ALL = 2**31

_LOSSES = 5
"""So many lost transactions of an event on its own count as one failed attempt."""

_REMEMBERED = 1_000
"""The most events whose losses are remembered."""


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
        self._taken: Sequence[int] = ()
        self._losses: Counter[int] = Counter()
        self._blamed: dict[int, Exception] = {}

    def of(self, rows: Sequence[ClaimedRow]) -> Sequence[ClaimedRow]:
        """The first of these rows, in order of their positions: those that the transaction takes."""
        taken = rows[: self._most]
        self._taken = [row.position for row in taken]
        return taken

    def lost(self, error: Exception) -> None:
        """The transaction was lost with this error while its handlers ran."""
        self._most = max(1, len(self._taken) // 2)
        if len(self._taken) != 1:
            return
        if len(self._losses) >= _REMEMBERED:
            self._losses.clear()
            self._blamed.clear()
        (position,) = self._taken
        self._losses[position] += 1
        if self._losses[position] >= _LOSSES:
            self._blamed[position] = error

    def committed(self) -> None:
        """The transaction was committed."""
        if self._taken:
            self._most = min(_ALL, 2 * self._most)
        for position in self._taken if self._losses else ():
            self._losses.pop(position, None)
            self._blamed.pop(position, None)

    def error_of(self, row: ClaimedRow) -> Exception | None:
        """The error to count as an attempt, without running the handler; None if the event is not to blame."""
        return self._blamed.get(row.position)


def may_fail(stages: Sequence[Mapping[str, Sequence[ClaimedRow]]]) -> bool:
    """Whether to use savepoints from the start: an event has failed before, or several handlers are involved."""
    parts = [rows for stage in stages for rows in stage.values()]
    return len(parts) != 1 or any(row.attempts for row in parts[0])


def stages_of(rows: Sequence[ClaimedRow]) -> list[dict[str, list[ClaimedRow]]]:
    """Rows by type, in stages: within an aggregate, a change of type starts the next stage."""
    types = {row.type for row in rows}
    if len(types) == 1:
        return [{types.pop(): list(rows)}]
    stages: list[dict[str, list[ClaimedRow]]] = []
    reached: dict[str, tuple[int, str]] = {}
    for row in rows:
        number, before = reached.get(row.aggregate, (0, row.type))
        if row.type != before:
            number += 1
        reached[row.aggregate] = (number, row.type)
        while number >= len(stages):
            stages.append({})
        stages[number].setdefault(row.type, []).append(row)
    return stages
