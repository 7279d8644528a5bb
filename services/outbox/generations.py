"""SQL that finds an aggregate's ready rows, wherever in the outbox they are.

Their index begins with the generation of a row: two million positions that were taken one after the other. So new rows
go into a small part of the index, whatever else is in it. Were it ordered by aggregate alone, each new row would go to
some page of all: with ten million rows that wait, or as many dead ones that a snapshot keeps, it is read from disk
first, and after each checkpoint it goes to the write-ahead log whole.
"""

_BITS = 21

MAX_POSITION = 2**63 - 1

GENERATION = f"(position >> {_BITS})"
"""The generation of an outbox row; the index is on just this expression."""

LAST_TAKEN = "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_position_seq)"
"""The highest position that any transaction has taken; 0 where none has (the sequence's last value is 1 by then)."""


def generations(first: str, last: str) -> str:
    """A FROM entry with the generations from one position to another; `generation` is its column."""
    return f"generate_series(({first}) >> {_BITS}, ({last}) >> {_BITS}) AS generation"


def ready_of(aggregate: str) -> str:
    """A condition for the aggregate's ready rows of one of the `generations`.

    Where the first of them is wanted, `BY_POSITION` keeps the planner on their index.
    """
    return f"available_at IS NULL AND {GENERATION} = generation AND aggregate = {aggregate}"


BY_POSITION = f"{GENERATION}, aggregate, position"
"""What to order an aggregate's ready rows of one generation by."""
