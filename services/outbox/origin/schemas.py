"""What is stored, compared with the cluster, and what a rebase has changed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """The system identifier that was noted last (None if it could not be read), and the ids of the log.

    `ahead`: the log holds transaction ids that this cluster has not reached yet. `readable`: this role may read the
    cluster's own identifier.
    """

    identifier: int | None
    ahead: bool
    readable: bool


@dataclass(frozen=True, slots=True)
class Counter:
    """A sequence and a column that takes its values; names are quoted for SQL."""

    sequence: str
    table: str
    column: str


@dataclass(frozen=True, slots=True)
class Rebased:
    """What a rebase has changed: sequences that were behind, events with new transaction ids, consumers."""

    sequences: tuple[str, ...]
    events: int
    consumers: tuple[str, ...]
